"""What is measured: one entry a case, with the figures it is held to. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FORWARD, BOTH = "forward", "forward+backward"
OURS = "ours"
LAYOUTS = ("", " channels_last")
COMMON = tuple(f"common{layout}" for layout in LAYOUTS)
SDPA = tuple(f"SDPA{layout}" for layout in LAYOUTS)
DIFFUSERS, MONAI = "diffusers", "MONAI"
TIMM, MHA, MHA_WEIGHTS = "timm", "nn.MHA", "nn.MHA weights"
ROW = "ours with class row"
TOKEN_SDPA = "SDPA"  # our own layers around torch's kernel
# The upper end of the 95 % interval may lie this much above the figure.
ALLOWANCE = 0.03
# The common block's forward and backward hold about this many N x N matrices at their peak.
STORED_MATRICES = 3.5
# Rounds of a case that says nothing else. Nine is the least with an interval inside the range.
FEWEST, MOST = 9, 31


def _other(method: str) -> str:
    return f"{method}{LAYOUTS[1]}"


Local = Literal["window", "neighborhood", "axial", "criss_cross"]
Kind = Local | Literal["map", "pooled", "unet", "tokens", "class_row"]
# What each local form stands beside.
LOCAL_PEERS: dict[Local, str] = {
    "window": "torchvision Swin",
    "neighborhood": "unfold",
    "axial": "SDPA by axis",
    "criss_cross": "common criss-cross",
}


@dataclass(frozen=True)
class Case:
    """One table row of the benchmark.

    Attributes:
        name: unique; what ``--only`` looks at.
        kind: ``map`` (common form), ``pooled`` (released form), ``unet``, a local form
            (``window``, ``neighborhood``, ``axial``, ``criss_cross``), ``tokens`` or ``class_row``.
        shape: (B, C, H, W) of a map, (B, N, D) of tokens.
        mask: "padding" = a sample of tokens ends early, in each another length; "causal"; or "".
        methods: what runs side by side; the first is the subject, the others its alternatives.
        rivals: the alternatives among which the fastest is "the best"; () = all of them.
        time_targets: highest ratio subject : alternative, by method; ``best`` = the fastest rival.
        memory_target: highest ratio of peaks, subject : common block.
        total_target: highest VmHWM of the subject's process, in MiB.
        rounds: this many and no more (for cases that no ratio is read from); None = by time.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    passes: str
    methods: tuple[str, ...]
    heads: int = 1
    mask: Literal["", "padding", "causal"] = ""
    rivals: tuple[str, ...] = ()
    time_targets: Mapping[str, float] = field(default_factory=dict)
    memory_target: float | None = None
    total_target: float | None = None
    rounds: int | None = None

    @property
    def subject(self) -> str:
        return self.methods[0]

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subject, on maps in both layouts."""
        return tuple(name for name in self.methods if name in (self.subject, _other(self.subject)))

    @property
    def tokens(self) -> int:
        return self.shape[1] if len(self.shape) == 3 else self.shape[2] * self.shape[3]

    def stored_bytes(self, method: str) -> float:
        """About what a method that stores N x N matrices holds at its peak; 0 for the others."""
        if self.kind not in ("map", "pooled") or not method.startswith(("common", "SDPA")):
            return 0.0
        keys = self.tokens / 4 if self.kind == "pooled" else self.tokens
        size = 2 if self.dtype == "bfloat16" else 4
        return STORED_MATRICES * self.shape[0] * self.tokens * keys * size


def _map_case(
    shape: tuple[int, int, int, int],
    dtype: str,
    passes: str,
    *,
    time: float,
    memory: float,
    pooled: bool = False,
    prefix: str = "",
) -> Case:
    kind = "pooled" if pooled else "map"
    return Case(
        name=f"{prefix}{kind}-{shape[2]}x{shape[3]}-{dtype}-{passes}",
        kind=kind,
        dtype=dtype,
        shape=shape,
        passes=passes,
        # Both sides are judged in whichever layout suits them.
        methods=(OURS, f"{OURS} channels_last", *COMMON, *SDPA),
        rivals=(*COMMON, *SDPA),
        time_targets={"best": time},
        memory_target=memory,
    )


def _unet_case(
    shape: tuple[int, int, int, int],
    heads: int,
    dtype: str,
    passes: str = BOTH,
    *,
    prefix: str = "",
) -> Case:
    return Case(
        name=f"{prefix}unet-{shape[1]}-{shape[2]}x{shape[3]}-{dtype}-{passes}",
        kind="unet",
        dtype=dtype,
        shape=shape,
        passes=passes,
        methods=tuple(f"{name}{layout}" for name in (OURS, DIFFUSERS, MONAI) for layout in LAYOUTS),
        rivals=tuple(f"{name}{layout}" for name in (DIFFUSERS, MONAI) for layout in LAYOUTS),
        heads=heads,
        time_targets={"best": 1.0},
    )


def _form_case(kind: Literal["map", "unet"], side: int) -> Case:
    """What a form that sees all costs on a map of that side, beside the local ones."""
    return Case(
        name=f"form-{kind}-{side}x{side}-float32",
        kind=kind,
        dtype="float32",
        shape=(1, 64, side, side),
        passes=BOTH,
        methods=(OURS,),
        heads=4,
        rounds=3 if side > 64 else FEWEST,
    )


def _local_case(kind: Local, side: int, *, prefix: str = "") -> Case:
    return Case(
        name=f"{prefix}{kind}-{side}x{side}-float32",
        kind=kind,
        dtype="float32",
        shape=(1, 64, side, side),
        passes=BOTH,
        methods=(OURS, LOCAL_PEERS[kind]),
        heads=4,
        time_targets={"best": 1.0},
        rounds=FEWEST,
    )


def _token_case(
    shape: tuple[int, int, int], heads: int, dtype: str, *, prefix: str = "", loose: bool = False
) -> Case:
    return Case(
        name=f"{prefix}tokens-{shape[1]}-{dtype}",
        kind="tokens",
        dtype=dtype,
        shape=shape,
        passes=BOTH,
        methods=(OURS, TIMM, MHA, MHA_WEIGHTS),
        heads=heads,
        time_targets={} if loose else {TIMM: 1.02, MHA_WEIGHTS: 0.7},
    )


def _masked_case(
    shape: tuple[int, int, int],
    heads: int,
    dtype: str,
    passes: str,
    mask: Literal["padding", "causal"],
    *,
    prefix: str = "",
    loose: bool = False,
) -> Case:
    return Case(
        name=f"{prefix}{mask}-{shape[1]}-{dtype}-{passes}",
        kind="tokens",
        dtype=dtype,
        shape=shape,
        passes=passes,
        methods=(OURS, TOKEN_SDPA, TIMM, MHA),
        heads=heads,
        mask=mask,
        time_targets={} if loose else {TOKEN_SDPA: 1.05},
    )


def _row_case(
    shape: tuple[int, int, int], heads: int, dtype: str, *, prefix: str = "", loose: bool = False
) -> Case:
    return Case(
        name=f"{prefix}class_row-{shape[1]}-{dtype}",
        kind="class_row",
        dtype=dtype,
        shape=shape,
        passes=BOTH,
        methods=(ROW, OURS),
        heads=heads,
        time_targets={} if loose else {OURS: 1.05},
        rounds=3 if loose else None,
    )


def _scan_case(side: int) -> Case:
    return Case(
        name=f"scan-map-{side}x{side}-float32",
        kind="map",
        dtype="float32",
        shape=(1, 64, side, side),
        passes=BOTH,
        methods=(OURS, COMMON[0], SDPA[0]),
        # The last one is also a row of the table: it has to run, in less than 1 GiB in total.
        total_target=1024.0 if side == 256 else None,
        rounds=3,
    )


_LARGE, _SMALL = (2, 128, 100, 100), ((32, 128, 32, 32), (64, 128, 16, 16), (128, 256, 8, 8))
_DTYPES = ("float32", "bfloat16")
_SIDES = (16, 32, 64, 128, 256)
_MASKS: tuple[Literal["padding", "causal"], ...] = ("padding", "causal")

CASES: tuple[Case, ...] = (
    _map_case(_LARGE, "float32", BOTH, time=0.72, memory=1 / 12),
    _map_case(_LARGE, "float32", FORWARD, time=0.62, memory=1 / 18),
    _map_case(_LARGE, "bfloat16", BOTH, time=0.65, memory=1 / 10),
    _map_case(_LARGE, "bfloat16", FORWARD, time=0.55, memory=1 / 12),
    *(_map_case(s, d, BOTH, time=1.02, memory=1.0) for s in _SMALL for d in _DTYPES),
    _map_case((8, 256, 64, 64), "float32", BOTH, time=0.85, memory=1 / 6, pooled=True),
    *(_token_case((256, 65, 192), 3, d) for d in _DTYPES),
    *(_token_case((8, 1025, 384), 6, d) for d in _DTYPES),
    *(
        _masked_case(shape, heads, d, passes, mask)
        for mask in _MASKS
        for shape, heads in (((64, 65, 192), 3), ((4, 512, 384), 6))
        for d in _DTYPES
        for passes in (BOTH, FORWARD)
    ),
    *(_row_case((256, 65, 192), 3, d) for d in _DTYPES),
    *(_row_case((8, 1025, 384), 6, d) for d in _DTYPES),
    *(_row_case((2, n, 384), 6, "float32", prefix="scan-", loose=True) for n in (257, 1025, 4097)),
    *(_scan_case(side) for side in (32, 64, 100, 128, 192, 256)),
    *(
        _unet_case(shape, heads, d)
        for shape, heads in (((16, 256, 16, 16), 4), ((4, 128, 32, 32), 4), ((1, 512, 64, 64), 1))
        for d in _DTYPES
    ),
    _unet_case((16, 256, 16, 16), 4, "float32", FORWARD),
    _unet_case((1, 512, 64, 64), 1, "float32", FORWARD),
    *(_local_case(kind, side, prefix="form-") for kind in LOCAL_PEERS for side in _SIDES),
    *(_form_case(kind, side) for kind in ("map", "unet") for side in _SIDES),
)

# To see that everything works, in about a minute; no figure is read from these.
QUICK_CASES: tuple[Case, ...] = (
    _map_case((2, 16, 13, 17), "float32", BOTH, time=9.9, memory=9.9, prefix="quick-"),
    _map_case(
        (2, 16, 12, 18), "bfloat16", BOTH, time=9.9, memory=9.9, pooled=True, prefix="quick-"
    ),
    _token_case((3, 17, 24), 2, "float32", prefix="quick-", loose=True),
    *(
        _masked_case((3, 17, 24), 2, "bfloat16", BOTH, mask, prefix="quick-", loose=True)
        for mask in _MASKS
    ),
    _row_case((3, 17, 24), 2, "float32", prefix="quick-", loose=True),
    _unet_case((2, 32, 5, 7), 2, "float32", prefix="quick-"),
    # A multiple of the window: torchvision pads others, with zeros that are attended to.
    *(_local_case(kind, 16, prefix="quick-") for kind in LOCAL_PEERS),
)


def find_case(name: str) -> Case:
    """The case of that exact name; raises KeyError with the names there are."""
    for case in CASES + QUICK_CASES:
        if case.name == name:
            return case
    raise KeyError(f"{name!r} is no case; there are: {', '.join(c.name for c in CASES)}")
