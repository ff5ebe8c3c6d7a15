"""Seeds: the hand-written questions everything that trains grows from."""
