from __future__ import annotations

import json
import random
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nltk
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.translate.meteor_score import meteor_score
from pydantic import ValidationError

from rlalign import ConfigError, Example, Task
from rlalign.running import loop
from rlalign.testing import registry, session
from rlalign.testing.bench import stop_early
from rlalign_plugin_text_metrics import wordnet
from rlalign_plugin_text_metrics.meteor import Meteor, MeteorNosyn, align, meteor
from rlalign_plugin_text_metrics.tokens import penn

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text())
TEXTS = [text for text, _ in PAIRS]
EXAMPLES = [Example(str(i), "", meta={"references": refs}) for i, (_, refs) in enumerate(PAIRS)]
# Twelve pairs of a text with some references, as in NLTK's own examples of the score.
GUIDES = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
    "It is a guide to action which ensures that the military always obeys the commands of the party",
    "It is to insure the troops forever hearing the activity guidebook that party direct",
]

MEANINGS = {
    "n": """house home dwelling; building edifice; builder constructor; dog hound Hound_dog; field; ball orb; mat rug
        cat true_cat; cat guy; sky heaven; lake loch; man adult_male; woman; child kid; knife; box; church; party; year
        military army troops; command direction order; principle rule; guide guidebook; activity action; price cost
        error fault mistake; result outcome; goose; axis; axe ax""",
    "v": """build construct; run race; catch grab; sit; die perish; see view; leave depart; rise climb; obey heed; hear
        guarantee ensure insure; watch observe; carry; hope; say state tell; house""",
    "a": "large big; small little; great; late; sharp(p) keen; last; nice pleasant; red crimson(a)",
    "s": "huge immense; tiny",
    "r": "always forever ever; really truly; late belatedly; not non; fast quickly",
}
"""Words of one meaning, by kind: nouns, verbs, adjectives, satellites of the first adjective, adverbs."""
IRREGULAR = {
    "noun": ["geese goose", "children child", "axes ax axe axis", "men man"],
    "verb": [
        "built build",
        "ran run",
        "caught catch",
        "sat sit",
        "saw see",
        "left leave",
        "rose rise",
        "dying die",
    ],
    "adj": ["biggest big", "better good"],
    "adv": ["best well"],
}
HEADER = "  1 A small dictionary, made for a test\n  2 WordNet 3.0 Copyright: none, but that is its format\n"


def write_wordnet(folder: Path) -> Path:
    """A dictionary of about eighty meanings, in WordNet's format, with what NLTK's reader wants beside."""
    folder.mkdir()
    for kind, letters in {"noun": "n", "verb": "v", "adj": "as", "adv": "r"}.items():
        lines = [(each, words.split()) for each in letters for words in re.split("[;\n]", MEANINGS[each])]
        data, places, index = HEADER, [], {}
        for letter, words in lines:
            places.append(len(data))
            pointers = f"001 & {places[0]:08d} a 0000" if letter == "s" else "000"
            frames = " 01 + 02 00" if letter == "v" else ""
            shown = " ".join(f"{word} 0" for word in words)
            data += f'{places[-1]:08d} 00 {letter} {len(words):02x} {shown} {pointers}{frames} | meaning; "said so"  \n'
            for word in words:
                index.setdefault(re.sub(r"\(.*", "", word).lower(), []).append(places[-1])
        (folder / f"data.{kind}").write_text(data)
        listed = [
            f"{word} {letters[0]} {len(at)} 0 {len(at)} 0 {' '.join(f'{p:08d}' for p in at)}  \n"
            for word, at in sorted(index.items())
        ]
        (folder / f"index.{kind}").write_text(HEADER + "".join(listed))
        (folder / f"{kind}.exc").write_text("".join(line + "\n" for line in sorted(IRREGULAR[kind])))
    (folder / "lexnames").write_text("00\tadj.all\t3\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_wordnet(tmp_path_factory.mktemp("dictionary") / "dict")


class Reader(WordNetCorpusReader):
    """NLTK's, without the map to other versions of WordNet."""

    def map_wn(self, version="wordnet"):
        return None


@pytest.fixture(scope="module")
def nltk_s(folder):
    nltk.data.path.append(str(folder))  # it reads nowhere else
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Reader(str(folder), None)
    nltk.data.path.remove(str(folder))


def ready(cls, **options):
    metric = cls(cls.Config(**options))
    if isinstance(metric, Meteor):
        metric.setup(None)
    return metric


# -- equal to NLTK's ------------------------------------------------------------------------------------


def test_synonyms_are_nltk_s(folder, nltk_s):
    known = wordnet.WordNet(folder)
    words = {word for said in MEANINGS.values() for word in re.sub(r"\(.\)|[_;]", " ", said).split()}
    forms = {w + end for w in words for end in ("", "s", "es", "ed", "ing", "er", "est", "ses", "ies", "men")}
    forms |= {line.split()[0] for lines in IRREGULAR.values() for line in lines} | {
        "",
        "'",
        "House",
        "HOUSES",
        "straße",
    }
    assert len(forms) > 800
    for word in sorted(forms):
        names = {n for meaning in nltk_s.synsets(word) for n in meaning.lemma_names() if "_" not in n}
        assert known.synonyms(word) == names | {word}, word


def test_scores_are_nltk_s(folder, nltk_s):
    metric = ready(Meteor, wordnet=folder)
    expected = [meteor_score([penn(r) for r in refs], penn(text), wordnet=nltk_s) for text, refs in PAIRS]
    assert metric.values(TEXTS, EXAMPLES) == expected
    assert sum(0 < value < 1 for value in expected) > 12


@pytest.mark.parametrize("said", range(5))
def test_scores_are_nltk_s_on_its_own_examples(folder, nltk_s, said):
    references = [each for i, each in enumerate(GUIDES) if i != said]
    expected = meteor_score([r.split() for r in references], GUIDES[said].split(), wordnet=nltk_s)
    example = Example("a", "", meta={"references": references})
    assert ready(Meteor, wordnet=folder).values([GUIDES[said]], [example]) == [expected]


def test_scores_are_nltk_s_on_shuffled_words(folder, nltk_s):
    generator, known = random.Random(0), wordnet.WordNet(folder)
    words = [
        "the",
        "house",
        "homes",
        "dwelling",
        "big",
        "large",
        "built",
        "constructed",
        "children",
        "kid",
        "army",
        "ran",
    ]
    for _ in range(400):
        text, reference = (generator.choices(words, k=generator.randrange(0, 14)) for _ in range(2))
        assert meteor(text, reference, known.synonyms) == meteor_score([reference], text, wordnet=nltk_s)


def test_literal_numbers(folder):
    known = wordnet.WordNet(folder).synonyms
    text, reference = ("big", "homes", "were", "built"), ("houses", "large", "were", "constructed")
    assert align(text, reference, None) == [(2, 2)]
    # built → build = construct; but of `houses` and `large` the second round left `hous` and `larg`, which mean nothing
    assert align(text, reference, known) == [(2, 2), (3, 3)]
    assert meteor("a", "a", None) == 0.5
    assert meteor("abcd", "abcd", None) == pytest.approx(1 - 0.5 / 64)
    precision, recall = 1 / 4, 1 / 2
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    assert meteor("axyz", "ab", None) == pytest.approx(0.5 * mean)


def test_eight_threads_find_the_same_in_a_wordnet_that_was_just_read(folder):
    metric = ready(Meteor, wordnet=folder)
    expected = metric.values(TEXTS, EXAMPLES)
    for _ in range(3):
        metric.synonyms = wordnet.WordNet(folder).synonyms
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: metric.values(TEXTS, EXAMPLES), range(8)))
        assert all(each == expected for each in found)


# -- where WordNet is -----------------------------------------------------------------------------------


def test_wordnet_is_looked_for_in_order(folder, tmp_path, monkeypatch):
    for name in ("WNSEARCHDIR", "WNHOME", "NLTK_DATA"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nltk/corpora").mkdir(parents=True)
    data = write_wordnet(tmp_path / "nltk/corpora/wordnet")
    home = write_wordnet(tmp_path / "dict")
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
    if wordnet.lacking(Path("/usr/share/wordnet")):
        assert Meteor.Config().folder == data
    monkeypatch.setenv("WNHOME", str(tmp_path))
    assert Meteor.Config().folder == home
    monkeypatch.setenv("WNSEARCHDIR", str(folder))
    assert Meteor.Config().folder == folder
    assert Meteor.Config(wordnet=home).folder == home
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "nowhere"))
    assert Meteor.Config().folder == home


def test_without_wordnet_there_is_no_meteor_and_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(wordnet, "places", lambda: [tmp_path / "here", tmp_path / "there"])
    with pytest.raises(ValidationError) as caught:
        Meteor.Config()
    for part in ("here", "there", "apt-get install wordnet-base", "`wordnet: FOLDER`", "`meteor-nosyn`"):
        assert part in str(caught.value)
    with pytest.raises(ValidationError, match=r"is no folder of WordNet: it lacks index.noun, data.noun"):
        Meteor.Config(wordnet=tmp_path)


def test_another_wordnet_is_another_metric(tmp_path):
    folder = write_wordnet(tmp_path / "dict")
    config = Meteor.Config(wordnet=folder)
    before = config.model_dump()
    (folder / "adv.exc").write_text("worst badly\n")
    assert Meteor.Config(wordnet=folder).model_dump() != before
    with pytest.raises(ConfigError, match="have changed"):
        Meteor(config).setup(None)


def test_without_synonyms_it_has_another_name(folder):
    metric, full = ready(MeteorNosyn), ready(Meteor, wordnet=folder)
    both = list(zip(metric.values(TEXTS, EXAMPLES), full.values(TEXTS, EXAMPLES), strict=True))
    assert any(less < more for less, more in both)
    assert "|syn:no|" in metric.signature() and "|syn:wordnet-3.0|" in full.signature()
    assert metric.values(TEXTS[:1], EXAMPLES[:1]) == [1 - 0.5 / 6**3]


@pytest.mark.parametrize("words", [6, 12, 25, 50])
def test_as_rl4lms_the_list_of_references_is_the_reference(folder, words):
    """What an answer scores that is the first of one, two and three references without a word in common."""
    metric = ready(Meteor, wordnet=folder, compat="rl4lms")
    texts = [" ".join(f"{letter}{i}" for i in range(words)) for letter in "xyz"]
    found = metric.values(
        [texts[0]] * 3, [Example(str(n), "", meta={"references": texts[:n]}) for n in (1, 2, 3)]
    )
    for n, score in enumerate(found, 1):
        listed = n * words + 3 * n + 1  # brackets, commas and quotation marks are words too
        recall = words / listed
        assert score == pytest.approx((1 - 0.5 / words**3) * recall / (0.9 + 0.1 * recall))
    assert "|refs:list|" in metric.signature()


class Houses(Task):
    """A task of six prompts, with references of which some words have synonyms."""

    def examples(self, split):
        return [Example(str(i), f"{split} {i}", meta={"references": GUIDES[i % 5 :]}) for i in range(6)]


def test_a_run_does_not_go_on_with_another_wordnet(tmp_path):
    folder, known = write_wordnet(tmp_path / "dict"), {"houses": Houses}
    pipeline = {
        "task": "houses",
        "policy": "bytes",
        "rewards": [{"meteor": {"wordnet": str(folder)}}],
        "algorithm": "policy-gradient",
        "generation": {"samples": 2, "max_new_tokens": 6},
        "train": {"iterations": 2, "prompts": 2},
    }
    stop_early(session(tmp_path, pipeline, known, name="stopped"))
    (folder / "adv.exc").write_text("worst badly\n")
    with pytest.raises(ConfigError, match="digest"):
        loop.resume(tmp_path / "runs/stopped", registry(known)).run()
