"""Drawings of the ten kinds of sounding objects, with antialiased shapes on varied backgrounds.

An object is drawn in its own coordinates, x to the right and y down, within about [-1, 1]; a `_Pose` places it in
the picture. Position, size, tilt, proportions and hues of a clip's first picture are drawn by `Parameters`, so training
and testing start from different ones; what moves afterwards may drift out of its band.
"""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from clipsep_jax.data.record import FRAME_SIZE
from clipsep_jax.demo.toy.draws import Number, Parameters, Split

_OVERSAMPLING = 2
_CANVAS_SIZE = FRAME_SIZE * _OVERSAMPLING

Color = tuple[int, int, int]
Points = Sequence[tuple[Number, Number]]


def draw(kind: str, rng: np.random.Generator, split: Split) -> UInt8[np.ndarray, "224 224 3"]:
    """An RGB picture of one object."""
    return draw_clip(kind, rng, split, 1)[0]


def draw_clip(
    kind: str, rng: np.random.Generator, split: Split, num_frames: int
) -> list[UInt8[np.ndarray, "224 224 3"]]:
    """RGB pictures of the same object before the same background, moving a little from one to the next."""
    p = Parameters(rng, split)
    background, look, pose = _background(p), _look(p), _pose(p)
    frames = []
    for _ in range(num_frames):
        image = background.copy()
        _DRAWINGS[kind](_Brush(ImageDraw.Draw(image), pose), look)
        frames.append(np.asarray(image.reduce(_OVERSAMPLING)))
        pose = pose.moved(rng)
    return frames


@dataclass(frozen=True)
class _Pose:
    """Where the object is: centre, half its width and squeeze on the canvas, tilt in radians."""

    x: float
    y: float
    scale: float
    tilt: float
    squeeze: float
    mirrored: bool

    def moved(self, rng: np.random.Generator) -> "_Pose":
        x, y = np.array([self.x, self.y]) + rng.normal(0, 0.006 * _CANVAS_SIZE, 2)
        return replace(self, x=float(x), y=float(y), tilt=self.tilt + float(rng.normal(0, 0.02)))

    def place(self, points: Points) -> list[tuple[float, float]]:
        """Points of the object on the canvas."""
        x, y = np.asarray(points, float).T * [[-1.0 if self.mirrored else 1.0], [self.squeeze]]
        cosine, sine = self.scale * np.cos(self.tilt), self.scale * np.sin(self.tilt)
        return list(zip(self.x + cosine * x - sine * y, self.y + sine * x + cosine * y, strict=True))


@dataclass(frozen=True)
class _Look:
    """Colours of an object (body, a second material, dark and bright details) and one free proportion in [0, 1)."""

    body: Color
    trim: Color
    dark: Color
    bright: Color
    proportion: float


@dataclass(frozen=True)
class _Brush:
    """Draws shapes given in the object's coordinates."""

    canvas: ImageDraw.ImageDraw
    pose: _Pose

    def polygon(self, points: Points, color: Color) -> None:
        self.canvas.polygon(self.pose.place(points), fill=color)

    def box(self, left: Number, top: Number, right: Number, bottom: Number, color: Color) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], color)

    def disc(self, x: Number, y: Number, width: Number, color: Color, height: Number | None = None) -> None:
        """An ellipse of half axes `width` and `height`; a circle where no height is given."""
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        self.polygon(list(zip(x + width * np.cos(angle), y + (height or width) * np.sin(angle), strict=True)), color)

    def line(self, points: Points, thickness: Number, color: Color) -> None:
        width = max(1, round(thickness * self.pose.scale))
        self.canvas.line(self.pose.place(points), fill=color, width=width, joint="curve")


def _color(hue: Number, saturation: Number, value: Number) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _look(p: Parameters) -> _Look:
    hue = p.between(0, 1)
    return _Look(
        body=_color(hue, p.between(0.45, 0.95), p.between(0.6, 0.95)),
        trim=_color(hue + p.between(0.2, 0.8), p.between(0.3, 0.8), p.between(0.4, 0.9)),
        dark=_color(p.between(0, 1), 0.4, p.between(0.05, 0.25)),
        bright=_color(p.between(0, 1), 0.15, p.between(0.85, 1.0)),
        proportion=p.between(0, 1),
    )


def _pose(p: Parameters) -> _Pose:
    return _Pose(
        x=_CANVAS_SIZE * p.between(0.44, 0.56),
        y=_CANVAS_SIZE * p.between(0.44, 0.56),
        scale=_CANVAS_SIZE * p.between(0.32, 0.42),
        tilt=p.between(-0.2, 0.2),
        squeeze=p.between(0.9, 1.1),
        mirrored=bool(p.rng.random() < 0.5),
    )


def _background(p: Parameters) -> Image.Image:
    """A plain colour, a gradient, or a gradient with faint discs, boxes and strokes strewn over it."""
    style = p.rng.integers(3)
    hues, values = p.several_between(0, 1, 2), p.several_between(0.35, 1.0, 2)
    ends = [_color(hue, p.between(0.05, 0.35), value) for hue, value in zip(hues, values, strict=True)]
    if style == 0:
        return Image.new("RGB", (_CANVAS_SIZE, _CANVAS_SIZE), ends[0])
    ramp = np.linspace(0, 1, _CANVAS_SIZE)[:, None]
    column = ((1 - ramp) * ends[0] + ramp * ends[1]).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(column[:, None], (_CANVAS_SIZE, _CANVAS_SIZE, 3))))
    if p.rng.random() < 0.5:
        image = image.transpose(Image.Transpose.ROTATE_90)
    if style == 2:
        _strew(ImageDraw.Draw(image), p)
    return image


def _strew(canvas: ImageDraw.ImageDraw, p: Parameters) -> None:
    for _ in range(p.rng.integers(3, 9)):
        color = _color(p.between(0, 1), p.between(0.1, 0.4), p.between(0.4, 0.95))
        x, y = p.rng.uniform(0, _CANVAS_SIZE, 2)
        half = _CANVAS_SIZE * p.between(0.02, 0.12)
        box = (x - half, y - half, x + half, y + half * p.between(0.3, 1.0))
        style = p.rng.integers(3)
        if style == 0:
            canvas.ellipse(box, fill=color)
        elif style == 1:
            canvas.rectangle(box, fill=color)
        else:
            canvas.line(box, fill=color, width=round(half / 4) + 1)


# The ten kinds


def _accordion(brush: _Brush, look: _Look) -> None:
    """Two boards with keys and buttons, and the pleated bellows between them."""
    pleats = np.linspace(-0.6, 0.6, 13)
    edge = [0.55 + 0.1 * (i % 2) for i in range(13)]
    top, bottom = zip(pleats, -np.array(edge), strict=True), zip(pleats, edge, strict=True)
    brush.polygon([*top, *reversed(list(bottom))], look.trim)
    for x, y in zip(pleats, edge, strict=True):
        brush.line([(x, -y), (x, y)], 0.04, look.dark)
    for side in (-1, 1):
        brush.polygon([(side * 0.55, -0.75), (side, -0.75), (side, 0.75), (side * 0.55, 0.75)], look.body)
    for y in np.linspace(-0.6, 0.6, 7):
        brush.box(0.75, y - 0.06, 0.98, y + 0.06, look.bright)
        brush.disc(-0.8, y, 0.06, look.dark)


def _bell(brush: _Brush, look: _Look) -> None:
    """A flaring bell with a rim, hung from a loop, and its clapper."""
    flare = 0.8 + 0.15 * look.proportion
    brush.disc(0, -0.85, 0.16, look.dark)
    brush.disc(0, 0.68, 0.2, look.dark)
    half = [(0.2, -0.75), (0.42, -0.6), (0.5, -0.2), (0.58, 0.2), (flare, 0.6)]
    brush.polygon([*half, *((-x, y) for x, y in reversed(half))], look.body)
    brush.box(-flare, 0.5, flare, 0.64, look.trim)
    brush.line([(-0.25, -0.5), (-0.4, 0.4)], 0.08, look.bright)


def _bird(brush: _Brush, look: _Look) -> None:
    """A songbird from the side: round body, beak, wing, tail and thin legs."""
    brush.polygon([(-0.45, -0.05), (-1.05, -0.3 - 0.2 * look.proportion), (-0.95, 0.15), (-0.4, 0.25)], look.trim)
    for x in (-0.05, 0.15):
        brush.line([(x, 0.4), (x + 0.05, 0.9), (x + 0.2, 0.92)], 0.05, look.dark)
    brush.disc(0, 0.1, 0.6, look.body, height=0.42)
    brush.disc(0.5, -0.35, 0.3, look.body)
    brush.polygon([(0.72, -0.5), (1.08, -0.32), (0.74, -0.2)], look.dark)
    brush.disc(0.58, -0.42, 0.09, look.bright)
    brush.disc(0.6, -0.42, 0.05, look.dark)
    brush.polygon([(0.2, -0.1), (-0.6, 0.05), (-0.1, 0.35)], look.trim)


def _car(brush: _Brush, look: _Look) -> None:
    """A car from the side: cabin with windows, body and two wheels."""
    roof = -0.45 - 0.15 * look.proportion
    brush.polygon([(-0.65, 0), (-0.4, roof), (0.3, roof), (0.6, 0)], look.body)
    brush.polygon([(-0.5, 0), (-0.33, roof + 0.1), (-0.06, roof + 0.1), (-0.06, 0)], look.bright)
    brush.polygon([(0.04, 0), (0.04, roof + 0.1), (0.24, roof + 0.1), (0.45, 0)], look.bright)
    brush.polygon([(-1, 0), (0.8, 0), (1.02, 0.15), (1.02, 0.42), (-1, 0.42)], look.body)
    brush.box(0.85, 0.12, 1.02, 0.24, look.trim)
    for x in (-0.55, 0.55):
        brush.disc(x, 0.42, 0.26, look.dark)
        brush.disc(x, 0.42, 0.12, look.trim)


def _clock(brush: _Brush, look: _Look) -> None:
    """A round bright face with a rim, twelve marks and two hands."""
    brush.disc(0, 0, 0.95, look.body)
    brush.disc(0, 0, 0.78, look.bright)
    for hour in range(12):
        x, y = np.cos(hour * np.pi / 6), np.sin(hour * np.pi / 6)
        brush.line([(0.6 * x, 0.6 * y), (0.72 * x, 0.72 * y)], 0.07, look.dark)
    for turn, length, width in ((look.proportion, 0.4, 0.11), (12 * look.proportion, 0.62, 0.07)):
        angle = 2 * np.pi * turn
        brush.line([(0, 0), (length * np.cos(angle), length * np.sin(angle))], width, look.dark)
    brush.disc(0, 0, 0.08, look.trim)


def _dog(brush: _Brush, look: _Look) -> None:
    """A dog from the side: long body on four legs, raised tail, head with snout and hanging ear."""
    brush.line([(-0.7, -0.1), (-1.0, -0.5 - 0.3 * look.proportion)], 0.14, look.body)
    for x in (-0.68, -0.45, 0.22, 0.45):
        brush.box(x - 0.08, 0.2, x + 0.08, 0.88, look.body)
    brush.box(-0.76, -0.2, 0.53, 0.32, look.body)
    brush.polygon([(0.3, 0), (0.45, -0.5), (0.75, -0.3), (0.53, 0.2)], look.body)
    brush.box(0.4, -0.78, 0.84, -0.3, look.body)
    brush.box(0.75, -0.55, 1.1, -0.3, look.body)
    brush.disc(1.07, -0.5, 0.09, look.dark)
    brush.disc(0.7, -0.62, 0.06, look.dark)
    brush.polygon([(0.36, -0.8), (0.58, -0.76), (0.42, -0.22), (0.26, -0.3)], look.trim)
    brush.box(0.32, -0.12, 0.66, 0, look.bright)


def _drum(brush: _Brush, look: _Look) -> None:
    """A drum with a bright skin, hoops and laces, and two sticks."""
    brush.disc(0, 0.55, 0.75, look.trim, height=0.3)
    brush.box(-0.75, -0.2, 0.75, 0.55, look.body)
    knots = np.linspace(-0.72, 0.72, 9)
    brush.line([(x, 0.6 if i % 2 else -0.1) for i, x in enumerate(knots)], 0.06, look.bright)
    brush.disc(0, -0.2, 0.8, look.trim, height=0.34)
    brush.disc(0, -0.22, 0.7, look.bright, height=0.27)
    spread = 0.6 + 0.3 * look.proportion
    for side in (-1, 1):
        brush.line([(side * 0.1, -0.25), (side * spread, -0.95)], 0.08, look.dark)
        brush.disc(side * 0.1, -0.25, 0.09, look.dark)


def _flute(brush: _Brush, look: _Look) -> None:
    """A long thin slanting tube with a mouth hole, keys and joints."""
    slanted = replace(brush, pose=replace(brush.pose, tilt=brush.pose.tilt + (0.6 if brush.pose.mirrored else -0.6)))
    slanted.box(-1.2, -0.09, 1.2, 0.09, look.body)
    for x in (-1.2, -0.62, 0.75):
        slanted.box(x, -0.12, x + 0.09, 0.12, look.trim)
    slanted.disc(-0.9, 0, 0.09, look.dark, height=0.06)
    for x in np.linspace(-0.35, 0.6 + 0.08 * look.proportion, 6):
        slanted.disc(x, -0.02, 0.08, look.dark)
        slanted.disc(x, -0.02, 0.045, look.bright)


def _guitar(brush: _Brush, look: _Look) -> None:
    """An upright guitar: waisted body with a sound hole, long neck, head with pegs, strings."""
    lower = 0.48 + 0.1 * look.proportion
    brush.disc(0, 0.52, lower, look.body, height=0.42)
    brush.disc(0, 0.05, 0.38, look.body, height=0.33)
    brush.disc(0, 0.22, 0.17, look.dark)
    brush.box(-0.08, -0.85, 0.08, 0.12, look.trim)
    brush.box(-0.14, -1.15, 0.14, -0.83, look.dark)
    brush.box(-0.22, 0.62, 0.22, 0.7, look.dark)
    for x in (-0.04, 0.04):
        brush.line([(x, -0.85), (x, 0.65)], 0.02, look.bright)
    for y in (-1.08, -0.92):
        brush.box(-0.22, y - 0.03, -0.14, y + 0.03, look.bright)
        brush.box(0.14, y - 0.03, 0.22, y + 0.03, look.bright)


def _siren(brush: _Brush, look: _Look) -> None:
    """A warning light: a dome on a dark foot, with rays around it."""
    for angle in np.linspace(-np.pi, 0, 7):
        x, y = np.cos(angle), np.sin(angle)
        brush.line([(0.72 * x, 0.72 * y + 0.1), (x, y + 0.1)], 0.1, look.trim)
    angle = np.linspace(-np.pi, 0, 20)
    dome = 0.5 + 0.08 * look.proportion
    arch = list(zip(dome * np.cos(angle), dome * np.sin(angle) + 0.1, strict=True))
    brush.polygon([*arch, (dome, 0.45), (-dome, 0.45)], look.body)
    brush.disc(0, 0.1, 0.2, look.bright)
    brush.box(-0.8, 0.45, 0.8, 0.75, look.dark)


_DRAWINGS: dict[str, Callable[[_Brush, _Look], None]] = {
    "accordion": _accordion,
    "bell": _bell,
    "bird": _bird,
    "car": _car,
    "clock": _clock,
    "dog": _dog,
    "drum": _drum,
    "flute": _flute,
    "guitar": _guitar,
    "siren": _siren,
}
