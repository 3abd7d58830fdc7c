"""What rewards of texts are tried on: ordinary examples, and texts that a careless one stumbles over."""

from __future__ import annotations

from rlalign.data.example import Example

ROWS = (
    Example(
        "weather",
        "What will the weather be?",
        ("It rains in the north today.", "The sun is out, and nobody knows why."),
        meta={"references": ["It will rain in the north today.", "Today there is rain in the north."]},
    ),
    Example(
        "cat",
        "Where does the cat sit?",
        ("The cat sat on the mat.", "the cat sat on the mat", "It rains in the north today."),
        meta={"references": ["The cat sat on the mat.", "A cat was sitting on a mat.", "On the mat."]},
    ),
    Example(
        "price",
        "What does it cost?",
        ("It costs 3.50 euros (or 4).", "Nobody knows."),
        meta={"references": ["It costs 3.50 euros."]},
    ),
)
STRANGE = {
    "empty": "",
    "white space": " \t\n\u00a0\u3000 ",
    "one letter": "x",
    "punctuation": "?! … — “”",
    "combining marks": "e\u0301a\u0308 n\u0303o\u0302",
    "emoji": "👩‍👩‍👧‍👦 🇫🇷 👍🏽 ok",
    "CJK": "我喜欢吃苹果。今日は晴れです",
    "right to left": "שלום עולם مرحبا بالعالم",
    "NUL": "a\0b \0",
    "controls": "\x07\x1b[31mred\u200b\ufeff\r\n",
    "digits": "1,000.5 -3e10 ²½ ٣",
    "one word": "a" * 5000,
    "one word again and again": "the " * 300,
    "markup": "<|endoftext|> </s> [CLS] <b>{x}</b> %s \\n &amp;",
    "another plane": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
}
OTHER = "Seven zebras painted nothing whatsoever!"
WORDS = 20_000
