"""Answers that load nothing; code that stays as it is."""

import pytest

from jupyter_gemma.notebook.harmless import harmless

FENCE = "```html\n<img src=x>\n![a](b)\n```"


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("plain *text* with `code`", "plain *text* with `code`"),
        ("![plot](http://example.com/x.png)", "[plot](http://example.com/x.png)"),
        ("![plot][ref]\n\n[ref]: http://example.com/x.png", "[plot][ref]\n\n[ref]: http://example.com/x.png"),
        ("[link](http://example.com)", "[link](http://example.com)"),
        ("<img src='http://example.com/x'>", "< img src='http://example.com/x'>"),
        ("<script>alert(1)</script>", "< script>alert(1)< /script>"),
        ("<!-- x -->", "< !-- x -->"),
        ("<IMG SRC=x>", "< IMG SRC=x>"),
        ("1 < 2 and a<=b", "1 < 2 and a<=b"),
        ("$a<b$", "$a< b$"),
        ("`<img>`", "`< img>`"),
        (FENCE, FENCE),
        ("~~~\n<b>\n~~~", "~~~\n<b>\n~~~"),
        ("```\n<b>\n```\n<b>", "```\n<b>\n```\n< b>"),
        ("````\n```\n<b>\n````\n<b>", "````\n```\n<b>\n````\n< b>"),
        ("```\n<b>\n~~~\n<i>\n```\n<b>", "```\n<b>\n~~~\n<i>\n```\n< b>"),
        ("- a\n  ```\n<img src=x>", "- a\n  ```\n< img src=x>"),
        ("- a\n  ```\n  b\n```\n<img src=x>", "- a\n  ```\n  b\n```\n< img src=x>"),
        ("> ```\n<img src=x>", "> ```\n< img src=x>"),
        ("$$\n```\n$$\n<img src=x>\n```", "$$\n```\n$$\n< img src=x>\n```"),
        ("$\n```\n$\n<img src=x>", "$\n```\n$\n< img src=x>"),
        ("```x`\n<img src=x>", "```x`\n< img src=x>"),
        ("", ""),
    ],
)
def test_table(markdown, expected):
    assert harmless(markdown) == expected
