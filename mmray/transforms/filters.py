"""Which samples are left out of a store, and why: one short word for each reason, to count by.

A filter leaves out what it knows not to pass. A text whose language can't be told (a word or two,
numbers, names) and a picture that can't be opened pass: decoding is where bad pictures are found.
"""

from functools import cache
from typing import Any

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from mmray.decode.pixels import opened
from mmray.errors import BadSample, SpecError
from mmray.sources.fragment import Sample
from mmray.specs.common import Limits
from mmray.specs.embed import Condition, FilterOptions
from mmray.specs.problems import hint

# A language is told where the model gives it more than all others together. Its probabilities
# allow for length, so that most texts below four or five words have no such language.
_SURE = 0.5
# A text's language shows in its beginning; the model takes 0.1 microseconds for a byte.
_LOOKED_AT = 2_000


class Filter:
    """Tells samples that pass from those that don't; what costs least is looked at first.

    `max_pixels` is the limit that decoding has too: a picture beyond it passes here.
    """

    def __init__(
        self, options: FilterOptions, text_column: str, *, max_pixels: int = Limits().pixels
    ) -> None:
        self._options = options
        self._text_column = text_column
        self._max_pixels = max_pixels
        self._conditions = {
            f"metadata.{name}": (name, _Test(condition))
            for name, condition in options.metadata.items()
        }

    @property
    def wanted(self) -> frozenset[str]:
        """The metadata fields that it looks at."""
        options = self._options
        reads_text = (options.min_characters, options.max_characters, options.languages)
        return frozenset(options.metadata) | ({self._text_column} if any(reads_text) else set())

    def reason(self, sample: Sample, text: str | None) -> str | None:
        """Why the sample is left out: `metadata.FIELD`, `min_characters`, `max_characters`,
        `min_side` or `language`; `None` where it passes.

        `text` is the decoded text. Without one a sample passes `max_characters` alone of the
        filters on text; without a picture it passes `min_side`.
        """
        options = self._options
        for reason, (name, test) in self._conditions.items():
            if not test.passes(sample.metadata.get(name)):
                return reason
        length = len(text or "")
        if options.min_characters is not None and length < options.min_characters:
            return "min_characters"
        if options.max_characters is not None and length > options.max_characters:
            return "max_characters"
        if options.min_side is not None and self._shorter_side(sample) < options.min_side:
            return "min_side"
        if options.languages is not None and not _may_be(text, options.languages):
            return "language"
        return None

    def _shorter_side(self, sample: Sample) -> float:
        picture = sample.members.get("image")
        if picture is None:
            return float("inf")
        try:
            with opened(picture, self._max_pixels) as image:
                return min(image.size)
        except BadSample:
            return float("inf")


class _Test:
    """A condition, ready to be tried on many values."""

    def __init__(self, condition: Condition) -> None:
        self._min, self._max = condition.min, condition.max
        self._one_of = None if condition.one_of is None else set(map(_known_by, condition.one_of))
        self._none_of = set(map(_known_by, condition.none_of or ()))

    def passes(self, value: Any) -> bool:
        """Whether `value` is all that the condition asks for; null, lists and objects never are."""
        if not isinstance(value, str | int | float):
            return False
        if self._min is not None or self._max is not None:
            if isinstance(value, str | bool):
                return False
            # Written so that NaN, which compares with nothing, does not pass.
            if self._min is not None and not value >= self._min:
                return False
            if self._max is not None and not value <= self._max:
                return False
        known_by = _known_by(value)
        return known_by not in self._none_of and (self._one_of is None or known_by in self._one_of)


def check(options: FilterOptions) -> None:
    """Refuse filters that nothing could pass, before any work.

    Raises SpecError for a language that can't be told and for a least above its most. Loads the
    language model, which takes about a second, only where languages are asked for.
    """
    least, most = options.min_characters, options.max_characters
    if least is not None and most is not None and least > most:
        raise SpecError("filter.min_characters", f"is {least}, above max_characters ({most})")
    for name, condition in options.metadata.items():
        low, high = condition.min, condition.max
        if low is not None and high is not None and low > high:
            raise SpecError(f"filter.metadata.{name}.min", f"is {low:g}, above max ({high:g})")
    if options.languages is None:
        return
    known = _identifier().labels
    for place, code in enumerate(options.languages):
        if code not in known:
            near = hint(code.replace("_", "-").split("-")[0], known)
            message = f"{code!r:.40} is not a language that can be told{near}; these are: "
            raise SpecError(f"filter.languages.{place}", message + ", ".join(sorted(known)))


def _known_by(value: str | int | float) -> tuple[bool, str | int | float]:
    """1 and 1.0 are one value; `True`, which Python takes for 1, is another."""
    return isinstance(value, bool), value


def _may_be(text: str | None, languages: tuple[str, ...]) -> bool:
    if text is None:
        return False
    # A run of capitals is read as small letters by the model itself.
    language, _ = _identifier().classify(text[:_LOOKED_AT])
    return language == "und" or language in languages


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_SURE)
