"""Which of a study's DICOM series is T1, contrast-enhanced T1, T2 or FLAIR.

The attributes of the acquisition say what a series can be, its name says which of that it is. Where these contradict
each other, or nothing tells, no series is taken.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from tissnet_components.scans.dicom import Series

OTHER = "other"  # known to be none of the contrasts
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ANY = frozenset({"t1", "t2", "ssfp", "flair", "pd", "stir", "t2*"})
UNWANTED = {"pd": "proton density", "stir": "STIR", "t2*": "T2*"}

IMAGE_TYPES = {  # in ImageType, as GE, Philips, Siemens and Canon write it
    "a localizer": "LOCALIZER SCOUT",
    "a subtraction": "SUBTRACT SUBTRACTION SUB",
    "diffusion": "DIFFUSION DWI ADC EADC TRACE TRACEW FA TENSOR",
    "perfusion": "PERFUSION ASL CBF CBV RCBF RCBV RELCBF RELCBV MTT TTP TMAX",
    "an angiogram": "TOF ANGIO FLOW_ENCODED VELOCITY VELOCITY_MAP PCA",
    "a projection": "MIP MAX_IP MIN_IP MINIP MNIP MEAN_IP PROJECTION_IMAGE",
    "susceptibility-weighted": "SWI T2_STAR QSM",
    "a map": "MAP T1_MAP T2_MAP T2_STAR_MAP R2_MAP T1_IMAGES T2_IMAGES",
    "no magnitude image": "P PHASE PHASE_MAP R REAL I IMAGINARY",
    "a fat or opposed-phase image": "F FAT OP OPP_PHASE OUT_PHASE OPPOSED_PHASE",
    "functional": "MOSAIC FMRI",
    "a picture of a screen": "SCREEN_SAVE SCREENSAVE CSA_REPORT",
}
ACQUISITIONS = {  # other values of AcquisitionContrast
    "DIFFUSION": "diffusion",
    "PERFUSION": "perfusion",
    "T2_STAR": "T2*",
    "TOF": "an angiogram",
    "FLOW_ENCODED": "an angiogram",
    "STIR": "STIR",
    "PROTON_DENSITY": "proton density",
}


def _words(pattern: str) -> re.Pattern:
    """The pattern, in a name without case and accents, with no letter before or after."""
    return re.compile(rf"(?<![a-z])(?:{pattern})(?![a-z])")


NAMES = {  # of what is none of the contrasts, in the languages that scanners speak
    "a localizer": _words(
        r"loc|[a-z]*lo[ck]ali[sz][a-z]*|reperage|scout[a-z]*|survey|surview|topogram[a-z]*|pilot|plan[ -]?scan"
        r"|(?:3|three|tri)[ -]?(?:plane|pl|pilot)|aah[a-z]*|smart ?brain"
    ),
    "a calibration": _words(
        r"cal|[ck]alib[a-z]*|asset|(?:sense|coil)[ -]?ref[a-z]*|ref[a-z]*[ -]?scan|prescan|shim[a-z]*|field ?map[a-z]*"
        r"|b[01][ -]?maps?"
    ),
    "a subtraction": _words(
        r"subs?(?![ -]?\d)|subs?tra[a-z]*|subtrak[a-z]*|minus|soustra[a-z]*|sottra[a-z]*|sustra[a-z]*|resta"
        r"|aftrek[a-z]*|odejm[a-z]*|cikarma"
    ),
    "diffusion": _words(
        r"d[wt]i|e?adc|diff|dif+us[a-z]*|dyfuz[a-z]*|difuz[a-z]*|trace[wf]?|(?:col)?fa(?!\d)|b[ =]?(?:0|\d{3,4})|ivim"
        r"|dki|tensor|resolve"
    ),
    "perfusion": _words(
        r"perf[a-z]*|[dp]wi|dsc|dce|p?c?asl|(?:r|rel)?cb[fv]|mtt|ttp|tmax|ktrans|d[yi]n(?:am[a-z]*)?|twist|tricks"
        r"|time[ -]?resolved"
    ),
    "an angiogram": _words(
        r"tof|time[ -]of[ -]flight|(?:ce|pc)?[ -]?mr[av]|angio[a-z]*|veno[a-z]*|phase[ -]?contrast|venc|inhance|q?flow"
        r"|pca|[23]d[ -]?pc|pc[ -]?[23]d"
    ),
    "susceptibility-weighted": _words(
        r"[a-z]*swi[pm]?|e?swan|susc|sus[cz]?ep[a-z]*|s?ven[ -]?bold|qsm|fsbb|(?:mag|pha) images"
    ),
    "a projection": _words(r"mip|min[ -]?ip|mnip|max[ -]?ip|max[a-z]* int[a-z]*|vrt?|vol[a-z]* rend[a-z]*|cpr"),
    "a map": _words(
        r"maps?|mapp?ing|mapit|mapp?a|t[12]maps?|carte|karte|harita[a-z]*|param[a-z]*|rela[xk][a-z]*|t[12] images"
        r"|r2 ?(?:\*|star)|t1 ?rho|molli|quant[a-z]*|fingerprint[a-z]*|mrf"
    ),
    "functional": _words(r"bold|r?s?[ -]?fmri|resting|ep2d|epi|mosaic"),
    "spectroscopy": _words(r"svs|csi|mrsi?|spe[ck]tro[a-z]*|press|steam"),
    "no magnitude image": _words(r"pha|(?<!in[ -])phas[es]*(?: images?)?|inv ?[12]|psir|real"),
    "a fat or opposed-phase image": _words(
        r"fat only|fat:|dixon.* (?:f|opp|out)|opp|(?:opp|out)[a-z]*[ -]?(?:of[ -])?phase"
    ),
    "STIR": _words("stir"),
    "double inversion": _words("dir"),
    "of several echoes": _words(r"multi[ -]?echo"),
    "of the spine": _words(
        r"[ctl]?[ -]?spine|spinal|cervi[ck]al[a-z]*|lumb[a-z]*|thora[ckx][a-z]*|[hbl]ws|rachis|columna|colonna|coluna"
        r"|kregoslup|myelo[a-z]*|wirbel[a-z]*"
    ),
    "a result of another program": _words(r"[a-z]*mask|segment[a-z]*|overlay|fus(?:ed|ion)"),
    "a report": _words(r"phoenix[a-z]*|report|screen[ -]?[a-z]*|key[ -]?images?"),
    "T2*": re.compile(r"t2w? ?\*|t2[ -]?(?:star|stern|etoile|yildiz)|t2s(?![a-z])|ha?emo|t2gre"),
}
BALANCED = _words(r"ciss|ci3d|fiesta[a-z]*|tru[e]?[ -]?fi[a-z]*|b[ -]?[ft]fe|balanced|drive")  # T2-like gradient echoes
GRADIENT_ECHO = _words(r"fl[23]d[a-z]*|ffe|t?fe[23]?d?|gre|grad[a-z]*|flash|medic|merge|eg")
SPIN_ECHO = _words(r"[a-z]{0,2}[ft]?se|blade|propeller|space|cube|vista|multivane|brainview")
BEFORE = r"(?<![a-z0-9])(?:ax|axial|sag|cor|kor|tra|trans|[23]d|wip|hr|fs|se|[ft]se|ir|gd|km|ce|pre|post)*[a-z]?"
T1 = re.compile(rf"{BEFORE}t1(?!\d)|mp[ -]?2?rage|bravo|spgr|tfl3d|vibe|lava|thrive|flash|fl[23]d")
T2 = re.compile(rf"{BEFORE}t2(?!\d)|haste|ss[ -]?fse")
FLAIR = re.compile(r"flair|dark[ -]?fl|fluid[ -]?att")
PD = _words(r"pdw?|dpw?|rho|proton[a-z]*|densit[a-z]*")

AGENT = (
    r"(?:[ck]ontras[a-z]*|gad[a-z]*|gd[a-z]*|ce|km|mdc|m\.d\.c\.?|civ|inj[a-z]*|enh[a-z]*|dotarem|clariscan"
    r"|magnevist|prohance|multihance|omniscan|ilac[a-z]*)"
)
OPERATION = r"(?:op|surg|resec|biops|rt|radi|chir|chem|treat|tx|bestr)"
PLAIN = re.compile(
    rf"(?<![a-z])(?:(?:pre|prae?|vor|avant|antes|prima|voor|przed|before|w/?o|s/|no|non|not|without|ohne|kein[e]?|sans"
    rf"|sin|senza|sem|zonder|bez|nie|utan|uden)[ .-]*(?:(?:de|del|the|di|du|la|l'|iv|i\.v\.)[ .-]*)?"
    rf"(?:{AGENT}|\+?c|k|iv|pc)(?![a-z])"
    rf"|(?:pre|prae?|vor|avant|antes|voor|przed)(?![a-z]|[ -]*{OPERATION})|nativ[a-z]*|plain|blanco|un-?enh[a-z]*"
    rf"|[vo]\.? ?km|s/?c(?![a-z])|[ck]ontrast(?:siz|los|frei)|ilacsiz|(?:{AGENT}|iv|c|k)-(?=\s|$)|\(-\)"
    rf"|(?:w/?o|ohne|sans|sin|senza|sem|zonder|bez|without)\s*$)"
)
ENHANCED = re.compile(
    rf"(?<![a-z]){AGENT}(?![a-z])|\+ ?(?:[ck]|{AGENT})(?![a-z])|(?<![a-z])(?:[ck]|iv) ?\+|c/c|w/(?!o)|with$|\+\)?$"
    rf"|(?<![a-z])(?:p[o]st?|nach|apres|dopo|despues|depois|apos|after|avec)(?:[ -]*{AGENT}|(?![a-z]|[ -]*{OPERATION}))"
    rf"|(?<=t1)w?(?:ce|[ -]?c|gd|km|k)(?![a-z])"
)
NO_AGENT = re.compile(  # as typed where one must be entered
    rf"(?:(?:no|none|non|nil|not|n/?a|without|ohne|kein[e]?|nein|sans|sin|senza|sem|nativ[a-z]*|zonder|geen|brak|bez|yok"
    rf"|0|[-.])(?:[ -]*(?:given|used|applied|agent|{AGENT}))*)?"
)


SUBSUMED = {  # by name, by attributes: FLAIR is a kind of T2, and "T1 FLAIR" a kind of T1
    (frozenset({"t2"}), frozenset({"flair"})): "flair",
    (frozenset({"flair"}), frozenset({"t1"})): "t1",
}


class Told(NamedTuple):
    """What the headers tell of a series.

    ``contrast`` is ``t1``, ``t1ce``, ``t2``, ``flair``, `OTHER` for what is none of them, or None where several may be
    meant; ``can_be`` are these.
    """

    contrast: str | None
    reason: str
    can_be: frozenset[str] = frozenset()


def contrast_of(series: Series) -> Told:
    """The contrast of a series, by the attributes of its headers and by its name."""
    name, tags = name_of(series), series.headers[0] if series.headers else {}
    other = next(_by_one_attribute(series, tags), None) or next(_by_one_word(name), None)
    if other:
        return Told(OTHER, other)
    (can_be, attributes), named = _by_acquisition(tags), _by_name(name)
    by = " and ".join([*([attributes] if attributes else []), *(["its name"] if named < ANY else [])])
    left = frozenset("t2" if contrast == "ssfp" else contrast for contrast in can_be & named)
    contrast = SUBSUMED.get((named, can_be)) or (min(left) if len(left) == 1 else None)
    if not contrast and not left:
        return Told(OTHER, f"its name says {_either(named)}, but {attributes}")
    if not contrast:
        return Told(None, f"by {by} it may be {_either(left)}" if by else "its headers do not tell", left)
    if contrast in UNWANTED:
        return Told(OTHER, f"{UNWANTED[contrast]} by {by}")
    return _with_agent(name, tags, by) if contrast == "t1" else Told(contrast, f"{contrast} by {by}")


def name_of(series: Series) -> str:
    """What a series is called, without case and accents."""
    protocol = series.headers[0].get("ProtocolName", "") if series.headers else ""
    letters = unicodedata.normalize("NFKD", (series.description or protocol).casefold().replace("\u0131", "i"))
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(re.sub(r"[_^]", " ", plain).split())


def says_agent(name: str) -> tuple[bool, bool]:
    """Whether a name says that no contrast agent was given, and whether it says that one was."""
    return bool(PLAIN.search(name)), bool(ENHANCED.search(PLAIN.sub(" ", name)))


def _by_one_attribute(series: Series, tags: Mapping[str, str]) -> Iterator[str]:
    """What a single attribute tells that no contrast has."""
    if series.modality != "MR":
        yield f"{series.modality or 'no'} images, not MR"
    types = {value.strip().upper().replace(" ", "_") for value in tags.get("ImageType", "").split("\\")}
    yield from (f"{kind} by ImageType" for kind, values in IMAGE_TYPES.items() if types & set(values.split()))
    acquisition = tags.get("AcquisitionContrast", "").upper()
    if acquisition in ACQUISITIONS:
        yield f"{ACQUISITIONS[acquisition]} by AcquisitionContrast"
    if tags.get("ComplexImageComponent", "").upper() in ("PHASE", "REAL", "IMAGINARY"):
        yield "no magnitude image by ComplexImageComponent"
    if tags.get("SOPClassUID", "").startswith(SECONDARY_CAPTURE):
        yield "a picture of a screen by SOPClassUID"
    if (_number(tags, "DiffusionBValue") or 0) > 0:
        yield "diffusion by DiffusionBValue"
    if "EP" in _sequence(tags):
        yield "an echo-planar image by ScanningSequence"
    if tags.get("AngioFlag", "").upper() == "Y":
        yield "an angiogram by AngioFlag"
    echoes = sorted(echo for header in series.headers if (echo := _number(header, "EchoTime")))
    if echoes and echoes[-1] > 1.2 * echoes[0]:
        yield f"of several echoes, {echoes[0]:g} to {echoes[-1]:g} ms"
    normals = [normal for header in series.headers if (normal := slice_normal(header)) is not None]
    if normals and min(abs(normal @ normals[0]) for normal in normals) < 0.9:
        yield "slices of several orientations"


def _by_one_word(name: str) -> Iterator[str]:
    return (f"{kind} by its name" for kind, words in NAMES.items() if words.search(name))


def _by_name(name: str) -> frozenset[str]:
    """What a name that holds no word of `NAMES` may mean."""
    if FLAIR.search(name):
        return frozenset({"t1" if T1.search(name) else "flair"})
    if "tirm" in name.split() and not T1.search(name):
        return frozenset({"flair", "stir"})
    if BALANCED.search(name):
        return frozenset({"t2", "ssfp"})
    t2 = T2.search(name)
    if t2 and GRADIENT_ECHO.search(name) and not SPIN_ECHO.search(name):
        return frozenset({"t2*"})
    found = {"t1": T1.search(name), "t2": t2, "pd": PD.search(name)}
    return frozenset(contrast for contrast, match in found.items() if match) or ANY


def _by_acquisition(tags: Mapping[str, str]) -> tuple[frozenset[str], str]:
    """What a series can be by its sequence and its times, and these as text.

    The limits are wide: 0.5 to 7 T, echo times of fast spin echo, which are effective ones.
    """
    kinds = _sequence(tags)
    echo, repetition, inversion = (_number(tags, tag) for tag in ("EchoTime", "RepetitionTime", "InversionTime"))
    times = {"EchoTime": echo, "RepetitionTime": repetition, "InversionTime": inversion}
    shown = [f"{tag} {value:g} ms" for tag, value in times.items() if value]
    text = ", ".join(shown + ([f"ScanningSequence {'/'.join(sorted(kinds))}"] if kinds else []))
    gradient = "GR" in kinds and "SE" not in kinds
    if (inversion and inversion >= 250) or "IR" in kinds:
        can_be = {"t1"} if gradient else _inverted(echo, inversion)
    elif echo is None:
        return (frozenset({"t1", "t2*", "ssfp"}), text) if gradient else (ANY, "")
    elif gradient:
        can_be = {"t2*"} if echo >= 15 else {"t1", "t2*"} if echo >= 8 else {"t1", "t2", "ssfp"}
    elif echo >= 50:
        can_be = {"t2"} if repetition and repetition < 4500 else {"t2", "flair"}
    elif "SE" in kinds:
        can_be = {"t1"} if repetition and repetition < 1300 else {"t1", "pd"}
    else:
        can_be = {"t1", "t2", "ssfp"} if echo < 8 else {"t1", "pd", "t2*"}
    return frozenset(can_be), text


def _inverted(echo: float | None, inversion: float | None) -> set[str]:
    """The same of inversion recovery: short TI nulls fat, middle ones weight by T1, long ones null fluid."""
    if inversion is None:
        return {"flair", "stir"} if echo and echo >= 50 else {"t1", "flair", "stir"}
    if inversion < 250:
        return {"stir"}
    if echo is None:
        return {"t1", "flair"}
    return {"t1"} if echo < 50 else {"flair"} if inversion >= 1300 else {"t2", "flair", "stir"}


def _with_agent(name: str, tags: Mapping[str, str], by: str) -> Told:
    """T1 with or without contrast agent: as the name says, else as the headers do, which many fill in beforehand."""
    plain, enhanced = says_agent(name)
    if plain and enhanced:
        return Told(OTHER, "its name says both with and without contrast agent")
    if plain or enhanced:
        how = "with" if enhanced else "without"
        return Told("t1ce" if enhanced else "t1", f"t1 by {by}, {how} contrast agent by its name")
    for tag in ("ContrastBolusAgent", "ContrastBolusAgentSequence", "ContrastBolusIngredient"):
        if not NO_AGENT.fullmatch(tags.get(tag, "").casefold()) and tags.get("ContrastBolusVolume") not in ("0", "0.0"):
            return Told("t1ce", f"t1 by {by}, with contrast agent by {tag}")
    return Told("t1", f"t1 by {by}, and no contrast agent is named")


def slice_normal(header: Mapping[str, str]) -> np.ndarray | None:
    """The unit vector across a slice, in LPS, or None where the header does not tell."""
    axes = vector(header, "ImageOrientationPatient", 6)
    normal = None if axes is None else np.cross(axes[:3], axes[3:])
    return None if normal is None or not normal.any() else normal / np.linalg.norm(normal)


def vector(header: Mapping[str, str], tag: str, count: int) -> np.ndarray | None:
    """The numbers of a tag, or None where they are not as many."""
    numbers = np.array([_float(text) for text in header.get(tag, "").split("\\")])
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _sequence(tags: Mapping[str, str]) -> set[str]:
    return set(re.findall(r"[A-Z]{2}", tags.get("ScanningSequence", "").upper()))


def _number(tags: Mapping[str, str], tag: str) -> float | None:
    """A time that a header tells, or None."""
    value = _float(tags.get(tag, "").split("\\")[0])
    return value if 0 < value < math.inf else None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _either(contrasts: frozenset[str]) -> str:
    return " or ".join(sorted(contrasts))
