"""Functions as users write them."""

import asyncio


def words(texts):
    return [float(len(text.split())) for text in texts]


def everything(prompts, texts, meta, examples, references=(), scale=1.0, **others):
    assert len(prompts) == len(texts) == len(references) == len(meta) == len(examples)
    assert not others
    return [scale * (len(p) + len(t) + len(r)) for p, t, r in zip(prompts, texts, references, strict=True)]


async def patient(texts):
    lengths = await asyncio.gather(*(_length(text) for text in texts))
    return list(lengths)


async def _length(text):
    await asyncio.sleep(0)
    return len(text)


def best_of_its_group(prompts, texts):
    """A response's value may depend on its group: here, on whether it is the longest answer to its prompt."""
    longest = {}
    for prompt, text in zip(prompts, texts, strict=True):
        longest[prompt] = max(longest.get(prompt, 0), len(text))
    return [len(text) == longest[prompt] for prompt, text in zip(prompts, texts, strict=True)]
