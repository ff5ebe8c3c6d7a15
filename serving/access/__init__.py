"""Who may ask: API keys, their scopes and quotas."""
