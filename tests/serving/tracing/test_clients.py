"""What kind of client asked: families of User-Agent headers, and never the header itself."""

import pytest

from serving.tracing.clients import CLIENT_KINDS, name_client_kind

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
EDITOR = "Mozilla/5.0 (X11; Linux x86_64) Code/1.101.0 Electron/35.5.1 vscode/1.101.0"
CRAWLER = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (None, "other"), ("", "other"), ("jo@example.com", "other"),
        (FIREFOX, "browser"), (EDITOR, "ide"), (CRAWLER, "bot"), ("kube-probe/1.33", "bot"),
        ("curl/8.5.0", "cli"), ("Wget/1.21", "cli"), ("python-httpx2/1.0", "library"),
        ("node", "library"), ("Go-http-client/2.0", "library"),
        ("understudy-traffic/docs_site", "docs_site"), ("understudy-widget/ide (beta)", "ide"),
        ("understudy-traffic/jo@example.com", "other"), ("understudy-traffic/somebody", "other"),
        ("x" * 100_000 + " curl/8", "other"),
    ],
)  # fmt: skip
def test_a_header_is_named_by_its_family(header, kind):
    assert name_client_kind(header) == kind
    assert kind in CLIENT_KINDS
