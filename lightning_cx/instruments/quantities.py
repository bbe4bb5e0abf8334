"""Every curve that lightning_cx logs: its tag, its chart, and what the documentation says of it, in one record each.

A section is a category of TensorBoard's custom-scalars tab and a table of the documentation. Each of its methods takes
a tag, the title of the chart, what the number says and what to do with it, keeps the record in `CURVES` and returns the
tag or tags. `CHARTS` and, with `make tables`, the tables in README.md and docs/ are made from the records.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MAX_BANDS = 64  # octaves: more levels than atoms


def of_layer(tag: str, layer: str) -> str:
    """Tag of the same quantity for one layer alone.

    No tag may be a folder that holds another: MLflow's file store and others that write a file for each tag lose all of
    a batch of values then. So layers lie in a folder beside the quantity, and everything else is a suffix.
    """
    return f"{tag}_layers/{layer}"


def of_block(tag: str, block: str) -> str:
    """Tag of a share of one block of the network; the quantity has no value of its own."""
    return f"{tag}/{block}"


def suffixed(tag: str, name: str) -> str:
    """Tag of the same quantity of another instrument, callback, optimizer or backward of that name."""
    return f"{tag}-{name}" if name else tag


def on_probe(tag: str) -> str:
    """Tag of the same quantity, measured on the probe instead of the batch."""
    return tag.replace("/", "/probe_", 1)


def shuffled(tag: str) -> str:
    """Tag of the same quantity with the examples shuffled: the control."""
    return f"{tag}_shuffled"


@dataclass(frozen=True)
class Curve:
    """One curve, or a few that are read together: their chart, and one row of the documentation.

    Attributes:
        tags: The tags; empty where they depend on a band, a layer or the user's choice.
        says: What the number tells.
        advice: What to do with it.
        table: Name of the table that it is a row of.
        category: Category of its chart.
        chart: Title of its chart; empty where it has none.
        kind: Of its chart; a margin chart takes a value with its lower and upper end.
        drawn: All tags that it adds to its chart.
        shown_as: Markdown of the first column; empty for the first tag and what the others add to it.
    """

    tags: tuple[str, ...]
    says: str
    advice: str
    table: str = ""
    category: str = ""
    chart: str = ""
    kind: str = "Multiline"
    drawn: tuple[str, ...] = ()
    shown_as: str = ""

    @property
    def row(self) -> str:
        """The row as Markdown.

        Example:
            >>> Curve(("gradient/noise_scale", "gradient/noise_scale_low"), "how noisy", "take more").row
            '| `gradient/noise_scale`, `_low` | how noisy | take more |'
        """
        first, *ends = self.tags or ("",)
        shown = ", ".join([f"`{first}`", *(f"`{end.removeprefix(first)}`" for end in ends)])
        return f"| {self.shown_as or shown} | {self.says} | {self.advice} |"


CURVES: list[Curve] = []


def interval(tag: str) -> tuple[str, str, str]:
    """Tags of a value and of the ends of its interval."""
    return tag, f"{tag}_low", f"{tag}_high"


class _Section(NamedTuple):
    category: str
    table: str
    probed: bool = False  # its curves are logged under the tags `on_probe` as well

    def curves(
        self,
        tags: tuple[str, ...],
        chart: str,
        says: str,
        advice: str,
        *,
        kind: str = "Multiline",
        beside: tuple[str, ...] = (),  # curves of another chart that this one shows too
        shown_as: str = "",
    ) -> tuple[str, ...]:
        drawn = (*beside, *tags, *(map(on_probe, tags) if self.probed else ()))
        CURVES.append(Curve(tags, says, advice, self.table, self.category, chart, kind, drawn, shown_as))
        return tags

    def curve(self, tag: str, chart: str, says: str, advice: str) -> str:
        self.curves((tag,), chart, says, advice)
        return tag

    def interval(self, tag: str, chart: str, says: str, advice: str) -> tuple[str, ...]:
        return self.curves(interval(tag), chart, says, advice, kind="Margin")

    def per_band(self, tag: str, chart: str, says: str, advice: str) -> Callable[[int], str]:
        """Return the tag of an octave band as a function of its number; band 0 is the mean."""
        tag_of = (tag + "_{:02d}").format
        bands = tuple(map(tag_of, range(MAX_BANDS)))
        shown_as = f"`{bands[0]}` …"
        CURVES.append(Curve((), says, advice, self.table, self.category, chart, drawn=bands, shown_as=shown_as))
        return tag_of

    def per_block(self, tag: str, chart: str, says: str, advice: str) -> str:
        """Return a tag that the name of a block follows."""
        self.curves((tag,), chart, says, advice, shown_as=f"`{of_block(tag, '<block>')}`")
        return tag

    def row(self, shown_as: str, says: str, advice: str) -> None:
        """A row for what has no tag or chart of its own."""
        CURVES.append(Curve((), says, advice, self.table, shown_as=shown_as))


def _chart_of(tag: str) -> str:
    return next(curve.chart for curve in CURVES if tag in curve.tags)


_LEARNED = _Section("What is being learned", "default")
_LEARNED_IN_BANDS = _Section("What is being learned", "on request")
_INTERFERENCE = _Section("Are the strong gradient modes the simple ones", "on request", probed=True)
_AGREEMENT = _Section("How far the examples' gradients agree", "default")
_TAILS = _Section("Is the gradient noise heavy-tailed", "on request")
_STOPPING = _Section("When to stop", "stopping")
_RECOVERY = _Section("Does training converge, and how fast", "local recovery")
_NEURONS = _Section("Which neurons are redundant", "local recovery")
_KERNEL = _Section("What the tangent kernel prefers", "kernel", probed=True)
_STEP_SIZE = _Section("Is the step size stable", "step size")
_AVERAGING = _Section("Would averaging, larger batches or SVRG help against the noise", "averaging")
_TRAJECTORY = _Section("How far the parameters have moved", "trajectory")
_DWELLING = _Section("Where does training dwell", "dwelling")
_COST = _Section("What it costs", "default")

RESIDUAL_MEDIAN = _LEARNED.curve(
    "complexity/residual_median",
    "complexity of residual and gradient (.5 is noise)",
    "complexity of what is still unlearned",
    "rises as structure is learned; once it reaches .5, what is left looks like noise: stop, regularise, or check "
    "labels",
)
RESIDUAL_ENERGY = _LEARNED.curve(
    "complexity/residual_energy",
    "residual energy",
    "how much is still unlearned, per example",
    "still falling while the median is at .5: the network is memorising",
)
residual_band = _LEARNED.per_band(
    "complexity/residual_band",
    "residual energy by band, simple (low) to complex (high)",
    "the same, by octave of complexity; 00 is the mean",
    "compare bands that share a chart in the custom-scalars tab",
)
SPECTRAL_BIAS_INDEX = _LEARNED.curve(
    "complexity/spectral_bias_index",
    "spectral bias index",
    "1: everything learned by half-time was the simple part; 0: no preference; below 0: the complex part first",
    "near 0 on real data: the features do not order the target (see below), or the architecture has no such bias "
    "(random Fourier features, for example)",
)
HIGH_COMPLEXITY_DOMINANCE = _LEARNED.curve(
    "complexity/high_dominance",
    "share of what is learned now that is complex (over .5: mostly noise)",
    "share of what was learned over the last five measurements that is complex",
    "above .5, most of what is being fitted is the complex part; if the low bands no longer change, that is noise",
)
WHITENESS = _LEARNED.curve(
    "complexity/whiteness_distance",
    "whiteness distance of the residual (up to 1: like noise)",
    "how far the residual is from white noise, in units of the distance that white noise stays below in 95% of cases",
    "up to 1: what is left cannot be distinguished from noise",
)
GRADIENT_MEDIAN = _LEARNED.curve(
    "complexity/gradient_median",
    _chart_of(RESIDUAL_MEDIAN),
    "complexity of what this batch's gradient changes",
    "low: similar examples pull together; at .5, each example pulls for itself",
)
GRADIENT_MEDIAN_CHANCE_LOW = _LEARNED.curve(
    "complexity/gradient_median_chance_low",
    _chart_of(RESIDUAL_MEDIAN),
    "null: if examples are paired with gradients at random, the median is above this line 97.5% of the time",
    "a gradient median above it is no evidence of structure",
)
fitted_fraction = _LEARNED_IN_BANDS.per_band(
    "complexity/fitted_fraction",
    "fitted fraction by band",
    "fitted fraction of each band of the target, 0 to 1, with `SpectralBias(per_band=True)`",
    "low bands first is healthy",
)
decay_rate = _LEARNED_IN_BANDS.per_band(
    "complexity/decay_rate",
    "decay rate by band (per step)",
    "relative loss of a band's energy per step over the last 16 measurements",
    "a top band that decays fast while the low ones no longer change: noise is being fitted",
)
half_life = _LEARNED_IN_BANDS.per_band(
    "complexity/half_life",
    "half-life by band (steps)",
    "number of steps in which half of a band's energy goes (inf: no significant fall)",
    "a top band with a short half-life while the low ones no longer change: noise is being fitted",
)

INTERFERENCE = _INTERFERENCE.curve(
    "gradient/interference",
    "interference and rank correlation (1: the strong gradient modes are the simple ones, 0: no relation)",
    "constructive interference index (CII): near 1, each strong mode of this batch's gradients is simpler than "
    "all that remains; 0: strength is unrelated to complexity; below 0: the complex modes are the strong ones",
    "near 0 from the start: the network has no preference for simple functions of these inputs (or the features "
    "do not order them)",
)
INTERFERENCE_P = _INTERFERENCE.curve(
    "gradient/interference_p",
    "p-value of the interference index if strengths were paired with modes at random",
    "how often pairing strengths with modes at random gives a CII this large",
    "above .05: no evidence for the line above",
)
RANK_CORRELATION = _INTERFERENCE.curve(
    "gradient/rank_correlation",
    _chart_of(INTERFERENCE),
    "Spearman's correlation of a mode's rank in strength with its complexity",
    "as the two above, over all modes instead of the strongest 20",
)
PROBE_INTERFERENCE, PROBE_INTERFERENCE_P, PROBE_RANK_CORRELATION = map(
    on_probe, (INTERFERENCE, INTERFERENCE_P, RANK_CORRELATION)
)
_INTERFERENCE.row(
    "`gradient/interference_layers/<layer>` …",
    "the same for one layer, with `Interference(per_layer=True)`",
    "shows which layer has lost its preference",
)
_INTERFERENCE.row(
    "`gradient/probe_interference` …",
    'the same on fixed examples, in eval mode, with `Interference(on="probe")`; needs extra passes',
    "can be compared from step to step",
)

NOISE_SCALE, NOISE_SCALE_LOW, NOISE_SCALE_HIGH = _AGREEMENT.interval(
    "gradient/noise_scale",
    "noise scale with 95% interval (examples)",
    "the batch size at which noise equals signal, pooled over 16 sampled batches, with its 95% interval",
    "well above your batch size: a larger batch gives nearly linear speed-up; well below: it gives little",
)
GRADIENT_SNR = _AGREEMENT.curve(
    "gradient/snr",
    "signal to noise of one example",
    "squared mean gradient over the variance of one example's gradient; unbiased, so it can be negative",
    "falls by orders of magnitude during training; near 0, the gradient is all noise",
)
GRADIENT_NORM = _AGREEMENT.curve(
    "gradient/norm", "gradient norm of the batch", "norm of the batch gradient", "spikes: exploding gradients"
)
EXAMPLE_NORM_P05, EXAMPLE_NORM_P50, EXAMPLE_NORM_P95 = _AGREEMENT.curves(
    ("gradient/example_norm_p05", "gradient/example_norm_p50", "gradient/example_norm_p95"),
    "gradient norms of examples: 5%, 50%, 95%",
    "norms of single examples' gradients",
    "a p95 far above the median: few examples drive training; look for outliers and wrong labels",
    shown_as="`gradient/example_norm_p05`, `_p50`, `_p95` and histogram",
)
PARTICIPATION_RATIO = _AGREEMENT.curve(
    "gradient/participation_ratio",
    "participation ratio: effective number of directions of the batch's gradients",
    "how many directions share the gradient's variation over the batch",
    "1: all examples pull along one line",
)

TAIL_INDEX, TAIL_INDEX_LOW, TAIL_INDEX_HIGH = _TAILS.interval(
    "tail/index",
    "tail index of single examples with 95% interval (2: Gaussian)",
    "with `TailIndex()`: how heavy the tail of single examples' gradient noise is, with its 95% interval: 2 is "
    "Gaussian, 1 is Cauchy; `nan` until 512 examples have been pooled (a short run needs `every_n_steps`)",
    "far below 2: a few examples have gradients of another order of magnitude than the rest; look at them",
)
TAIL_BATCH_INDEX, TAIL_BATCH_INDEX_LOW, TAIL_BATCH_INDEX_HIGH = _TAILS.interval(
    "tail/batch_index",
    "tail index of whole batches with 95% interval (2: Gaussian)",
    "the same for sums over a whole batch; from 64 sampled batches on",
    "at 2: your batches average the heaviness away, nothing to do; far below: larger batches will not help, clip",
)
TAIL_VERDICT = _TAILS.curve(
    "tail/verdict",
    "verdict (-1 indeterminate, 0 gaussian, 1 heavy but averages away, 2 stable)",
    "0 Gaussian, 1 heavy but averaged away in a batch, 2 stable: batches are as heavy as examples, -1 undecided; "
    "a card on the text tab gives the reason",
    "see [Is my gradient noise heavy-tailed?](docs/heavy_tails.md)",
)
TAIL_NORM_XI, TAIL_NORM_XI_LOW, TAIL_NORM_XI_HIGH = _TAILS.interval(
    "tail/norm_xi",
    "xi of example norms with 95% interval (over 0: power law)",
    "whether the largest tenth of the per-example gradients grows like a power law: if xi is significantly above "
    "0, it does; a mixture of small and large gradients looks like that too",
    "above 0: look at the examples with the largest gradients, or clip them",
)
TAIL_NORM_HILL = _TAILS.curve(
    "tail/norm_hill",
    "Hill estimate of the exponent, of example norms and of parameter steps (where xi is above 0)",
    "Hill's number: the exponent of that power law",
    "ignore it while the interval of xi includes 0",
)
TAIL_TRAJECTORY_XI, TAIL_TRAJECTORY_XI_LOW, TAIL_TRAJECTORY_XI_HIGH = _TAILS.interval(
    "tail/trajectory_xi",
    "xi of parameter steps with 95% interval (over 0: power law)",
    "xi of the steps of the parameters, from 128 sampled steps on",
    "above 0 at a steady step size: training makes rare, huge jumps; lower the step size or clip (a schedule is "
    "removed as far as it is smooth or changes at few steps)",
)
TAIL_TRAJECTORY_HILL = _TAILS.curve(
    "tail/trajectory_hill",
    _chart_of(TAIL_NORM_HILL),
    "Hill's number of the steps of the parameters",
    "ignore it while the interval of xi includes 0",
)
_TAILS.row(
    "`tail/index_layers/<layer>` …",
    "each layer's own index, with `TailIndex(per_layer=True)`",
    "shows which layer the heavy gradients come from",
)
TAIL_COORDINATE_INDEX, TAIL_COORDINATE_INDEX_CONTROL = _TAILS.curves(
    ("tail/coordinate_index", "tail/coordinate_index_control"),
    "tail index of pooled coordinates, and of normal ones of the same scales (for comparison with papers)",
    "with `TailIndex(coordinates=1000)`: what the common estimator, which pools coordinates, would report, beside "
    "Gaussian noise of the same scales",
    "for comparison with papers only: if the two agree, unequal scales explain all of it; if not, coordinates are "
    "correlated or not Gaussian by themselves, which does not make the tail of the noise heavy either",
)
_TAILS.row(
    "`<tag>_shuffled`",
    'with `control="shuffle"`, on an instrument or the whole monitor: the same number for shuffled examples',
    "whatever the control shows is not in your data",
)

STOPPING_RISK, STOPPING_RISK_LOW, STOPPING_RISK_HIGH = _STOPPING.interval(
    "stopping/risk",
    "estimated error on fresh examples, with its error band (lowest: the best weights)",
    "estimated error on fresh examples, with the band of rises that chance alone would explain: of `PathLeaveOneOut` "
    "the share of wrong labels, or the distance from the target, of training examples had each been left out; of "
    "`SpectralRisk` the squared error",
    "falling: continue. Level: more training gains nothing. Rising above the band: noise",
)
STOPPING_NOISE_FLOOR = _STOPPING.curve(
    "stopping/noise_floor",
    "noise in the targets, as estimated at the start",
    "how much of each target is noise (squared, summed over outputs): the risk cannot fall below it",
    "near 0 on clean data; high: look for wrong labels, or features that do not order the target",
)
STOPPING_FITTED_HIGH = _STOPPING.curve(
    "stopping/fitted_high",
    "share of the complex part that is already fitted (where the noise is)",
    "share of the rough half of the targets that the network has fitted",
    "0: none of the noise; 1: all of it, memorised",
)
STOPPING_DOMINANCE = _STOPPING.curve(
    "stopping/high_dominance",
    "share of the latest learning that went into the complex part (over .5: mostly noise)",
    "share of what was learned over the last five checks that is complex",
    "above .5, most of what is being fitted is the complex part",
)
STOPPING_WHITE_P = _STOPPING.curve(
    "stopping/white_p",
    "p-value of 'only noise is left to learn' (under .05: there is more)",
    "with `ResidualWhiteness`: how often pure noise would look as structured as what is left",
    "above .05, nothing is left to learn but noise",
)
STOPPING_OWN_SHARE, STOPPING_OWN_SHARE_NULL = _STOPPING.curves(
    ("stopping/own_share", "stopping/own_share_null"),
    "share of the latest learning that supports single examples alone (over .5: memorising)",
    "with `PathLeaveOneOut`: share of the present fall of the training loss that only the examples themselves support",
    "above .5 and above `own_share_null`, high-complexity residuals dominate: examples are memorised",
)
STOPPING_ACTS = _STOPPING.curve(
    "stopping/acts",
    "whether the rule may stop the run (0: it only recommends, the log says why)",
    "with `PathLeaveOneOut`: 1 where the rule may stop the run, 0 where its estimate is not to be trusted so far",
    "0: read the log; the learning rate may still have to fall, or the probe be too small",
)
STOPPING_FALL_RATIO = _STOPPING.curve(
    "stopping/fall_ratio",
    "fall of the residuals over the fall that their kernel predicts",
    "with `PathLeaveOneOut`: how well the linear picture explains the latest steps",
    "near 1: well; near 0: noise of the steps keeps the residuals up",
)
STOPPING_COVERAGE = _STOPPING.curve(
    "stopping/coverage",
    "how much of the training set the probe stands for",
    "with `PathLeaveOneOut` and a probe smaller than the training set: memory estimated by the whole probe over that "
    "by half of it",
    "below .7 the rule does not stop: take a larger probe",
)
STOPPING_CURVE = "stopping/curve"
_STOPPING.row(
    "picture `stopping/curve`",
    "the monitored value over steps, the step whose weights are kept, and the stop",
    "check that the minimum is clear",
)

RECOVERY_LAW = _RECOVERY.curve(
    "recovery/law",
    "law of the loss (-1 rising, 0 flat, 1 power, 2 exponential with floor, 3 exponential)",
    "shape of the latest half of the loss on the probe: -1 rising, 0 flat, 1 power of the step, 2 exponential "
    "with a floor, 3 exponential",
    "3: wait, the pace holds. 2: it ends at the floor that the card names; lower the step size or stop. 1: each "
    "halving takes longer than the last. 0: stop, or lower the step size. -1: the step size is too large",
)
RECOVERY_RATE, RECOVERY_RATE_LOW, RECOVERY_RATE_HIGH = _RECOVERY.interval(
    "recovery/loss_rate",
    "relative decrease of the loss per step with 95% interval",
    "relative fall of the loss (above its floor) per step at present, with its 95% interval",
    "log 2 over it is the number of steps in which the loss halves. Plan by it",
)
(RECOVERY_PREDICTED_RATE,) = _RECOVERY.curves(
    ("recovery/predicted_rate",),
    "relative decrease of the loss per step, fitted and predicted from the Jacobian",
    "the rate that the Jacobian predicts for the end, with this learning rate and momentum; negative: over the "
    "edge of stability",
    "below `loss_rate`: faster directions are still under way, and the pace will fall to this. Equal: this is the "
    "pace to the end, and only another step size, momentum or preconditioner changes it. Well above: not in the "
    "basin yet",
    beside=(RECOVERY_RATE,),
)
RECOVERY_RANK_SHARE = _RECOVERY.curve(
    "recovery/rank_share",
    "share of the parameters that the examples determine (1: the minimum is isolated)",
    "share of the parameters that the training examples determine",
    "1: the minimum is isolated, and more data sharpen it. Below 1: other minima fit as well, and a training loss "
    "of 0 says nothing of the test error: get more data or a smaller model (but see ReLU below)",
)
RECOVERY_REMOVABLE = _RECOVERY.curve(
    "recovery/removable_share",
    "share of the loss that the best linear step would remove (1: a zero is near, 0: none)",
    "share of the loss that the best linear step would take away",
    "near 1: a zero of the loss is near. Near 0: a minimum above zero, made of noise or of what the model cannot "
    "express. In between: not there yet",
)
RECOVERY_VERDICT = "recovery/verdict"

NEURONS_DUPLICATES = _NEURONS.curve(
    "neurons/duplicates",
    "shares of neurons: copies, dead, silent",
    "share of hidden neurons that could go, since another looks at the same thing (cosine of incoming weights "
    ".99, up to sign for odd activations)",
    "large: the layer is wider than the task needs: make it narrower, or prune",
)
NEURONS_DEAD = _NEURONS.curve(
    "neurons/dead",
    _chart_of(NEURONS_DUPLICATES),
    "share with the same output for all examples",
    "rises with ReLU: lower the learning rate, or take a leaky activation",
)
NEURONS_SILENT = _NEURONS.curve(
    "neurons/silent",
    _chart_of(NEURONS_DUPLICATES),
    "share that nothing listens to (outgoing weights a thousandth of the largest)",
    "prune them; large from the start: look at the initialisation of the next layer",
)
NEURONS_RANK = _NEURONS.curve(
    "neurons/rank_share",
    "numerical and effective rank of the hidden outputs, as shares of the largest possible",
    "numerical rank of the outputs, of what it could be",
    "below 1: exact dependencies; dead and copied neurons show here too",
)
NEURONS_EFFECTIVE_RANK = _NEURONS.curve(
    "neurons/effective_rank_share",
    _chart_of(NEURONS_RANK),
    "the same by the entropy of the spectrum, so that small directions count little",
    "a trend: falling means that features collapse onto few directions",
)
NEURONS_ALIGNMENT, NEURONS_ALIGNMENT_CHANCE = _NEURONS.curves(
    ("neurons/alignment", "neurons/alignment_chance"),
    "alignment with the teacher's neurons, and that of random ones (1: recovered)",
    "with `Neurons(teacher=...)`: mean cosine of the teacher's first-layer neurons with their partners; the same "
    "for random neurons",
    "1: recovered. As large as `_chance`: nothing of the teacher was found, whatever the loss says",
)
NEURONS_TEACHER_DISTANCE = _NEURONS.curve(
    "neurons/teacher_distance",
    "distance from the teacher, relative (0: the same network)",
    "with one hidden layer of the teacher's width: distance of all weights over all orders and signs of the "
    "neurons, relative to the norm of the weights",
    "0: the same network",
)
NEURONS_CARD = "neurons/layers"

KERNEL_DECAY, KERNEL_DECAY_SPREAD = _KERNEL.curves(
    ("kernel/decay", "kernel/decay_spread"),
    "decay exponent of the eigenvalues (a trend) and its spread",
    "beta of `eigenvalue ~ rank^-beta` over the ranks 3 to n / 8, and its standard deviation over random halves "
    "of the examples. Large: a few directions rule and details come late",
    "read it as a trend, in time or between two networks on the same examples, not as the law of the kernel: see "
    "below. A change of less than twice the spread is none",
)
KERNEL_PARTICIPATION_RATIO, KERNEL_PARTICIPATION_RATIO_ERROR = _KERNEL.curves(
    ("kernel/participation_ratio", "kernel/participation_ratio_error"),
    "participation ratio and effective rank (numbers of directions), with standard errors",
    "how many directions the examples pull in, strong ones counting most, between 1 and n - 1; its standard "
    "error, by leaving out tenths of the examples",
    "near 1: all examples want the same, or a few rule the batch. Near n - 1: each wants something else, as in "
    "memorising",
)
KERNEL_EFFECTIVE_RANK, KERNEL_EFFECTIVE_RANK_ERROR = _KERNEL.curves(
    ("kernel/effective_rank", "kernel/effective_rank_error"),
    _chart_of(KERNEL_PARTICIPATION_RATIO),
    "the same count by entropy, which weak directions add more to; its standard error",
    "far above the participation ratio: a few strong directions and many weak ones",
)
KERNEL_ALIGNMENT, KERNEL_ALIGNMENT_CHANCE_HIGH = _KERNEL.curves(
    ("kernel/alignment", "kernel/alignment_chance_high"),
    "alignment with the target (below the chance line: none; on a batch random labels align too)",
    "how far examples that the kernel takes for alike have the same target (probe: the same residual), 0 to 1; "
    "what about 95% of targets that know nothing of the kernel stay below",
    "on the probe, early on: above its chance line, the network's idea of likeness fits the task; below it there "
    "is no alignment, whatever its size (chance alone gives .10 to .14 in the runs below): other features or "
    "another architecture. On the batch: once it falls to the line, gradients no longer go by class",
)
KERNEL_POWER_AREA, KERNEL_POWER_AREA_CHANCE_HIGH = _KERNEL.curves(
    ("kernel/power_area", "kernel/power_area_chance_high"),
    "how early the kernel's leading directions hold the target, with the chance line (.5: by chance)",
    "how early the kernel's directions, strongest first, hold the target (probe: the residual), .5 by chance, 1 "
    "if the first ones do; its chance line",
    "on the probe, falling to .5: what is left is no longer what this network learns easily",
)
KERNEL_BLOCK_SHARE = _KERNEL.per_block(
    "kernel/block_share",
    "share of the expected decrease of the loss by block",
    "the block's share of the expected first-order decrease of the loss; all add up to 1; `rest` is what lies in "
    "no block",
    "a block at 0 for long gives nothing: freeze it, drop it, or find out why its gradient vanishes. One that "
    "takes nearly all: it learns alone",
)
KERNEL_BLOCK_SHARE_LOW = _KERNEL.per_block(
    "kernel/block_share_low",
    "share of the expected decrease of the loss by block: lower ends of the 95% intervals",
    "lower end of its 95% interval",
    "0: nothing is certain. Above 0: this block surely gives something",
)
PER_BLOCK = {tag for share in (KERNEL_BLOCK_SHARE, KERNEL_BLOCK_SHARE_LOW) for tag in (share, on_probe(share))}
KERNEL_SPECTRUM = "kernel/spectrum"

EDGE, EDGE_LOW, EDGE_HIGH = _STEP_SIZE.interval(
    "step_size/edge",
    "ratio to the edge of stability with 95% interval (1: steps no longer settle)",
    "learning rate times curvature, as a share of what is stable; 1 is the edge",
    "below .1 a larger rate is worth a try; .9 to 1.1 is the edge, go on if the loss falls; above 1.1 for long, "
    "lower the rate",
)
SHARPNESS, SHARPNESS_LOW, SHARPNESS_HIGH = _STEP_SIZE.interval(
    "step_size/sharpness",
    "sharpness: largest curvature of the loss, with 95% interval",
    "largest eigenvalue of the Hessian of the mean loss over 256 probe examples",
    "rising: the same rate gets less safe, wait with increases; falling: there is room. Its height means nothing "
    "across models",
)
GAUSS_NEWTON, GAUSS_NEWTON_LOW, GAUSS_NEWTON_HIGH = _STEP_SIZE.interval(
    "step_size/gauss_newton",
    "largest Gauss-Newton curvature with 95% interval",
    "the same of the Gauss-Newton matrix, the part of the curvature that comes from the outputs, over a few examples",
    "close to the sharpness: curvature is that of a fit. Far below it: residuals bend the loss",
)
GAUSS_NEWTON_EDGE = _STEP_SIZE.curve(
    "step_size/gauss_newton_edge",
    "ratio to the edge of stability by the Gauss-Newton curvature",
    "its ratio to the edge; one learning rate and no preconditioner only",
    "as `edge`; it reads too high where its examples are few",
)

AVERAGING_GAIN, AVERAGING_GAIN_LOW, AVERAGING_GAIN_HIGH = _AVERAGING.interval(
    "averaging/gain",
    "loss of the last weights less that of their average, with 95% interval (over 0: average them)",
    "loss of the last weights less that of their average, on the same probe examples, with its 95% interval",
    "`_low` over 0: the last weights are noisy; average them, or let the learning rate fall. `_high` under 0: "
    "training is still moving, the average lags behind; do neither. 0 inside: it makes no difference",
)
AVERAGING_LOSS_LAST, AVERAGING_LOSS_AVERAGE = _AVERAGING.curves(
    ("averaging/loss_last", "averaging/loss_average"),
    "loss of the probe: last weights, and their average",
    "the two losses",
    "where both are level, what lies between them is what the noise of the step size costs",
)
AVERAGING_WINDOW = _AVERAGING.curve(
    "averaging/window",
    "steps that the average covers, and age of the snapshot",
    "how many steps the average covers, from the first to the last",
    "half to three quarters of the run; short at first",
)
BATCH_SPEEDUP, BATCH_SPEEDUP_LOW, BATCH_SPEEDUP_HIGH = _AVERAGING.interval(
    "averaging/batch_speedup",
    "speed-up by twice the batch, with 95% interval (2: half the steps, 1: no gain)",
    "how many times fewer steps twice the batch would need",
    "2: half the steps, so a larger batch pays wherever your hardware takes it. 4/3: your batch is about the "
    "noise scale. Near 1: a larger batch buys nothing, a smaller one would do",
)
SVRG_RATIO, SVRG_RATIO_LOW, SVRG_RATIO_HIGH = _AVERAGING.interval(
    "averaging/svrg_ratio",
    "share of the gradient noise that SVRG would leave, with 95% interval (over 1: it adds noise)",
    "the share of the gradient noise that SVRG would leave",
    "over 1: SVRG adds noise. Under .5: it beats a batch of twice the size, which costs the same. Between: it does not",
)
SVRG_BEST = _AVERAGING.curve(
    "averaging/svrg_best",
    "share of the gradient noise that SVRG with the best coefficient would leave",
    "the same where the correction is scaled by the best coefficient (alpha-SVRG)",
    "far below `svrg_ratio`: a coefficient under 1 would rescue it",
)
SNAPSHOT_AGE = _AVERAGING.curve(
    "averaging/snapshot_age",
    _chart_of(AVERAGING_WINDOW),
    "how many steps ago the gradients were taken that the present ones are compared with",
    "the ratio is for this age; set `every_n_steps` to the age that you have in mind",
)

TRAJECTORY_LOSS = _TRAJECTORY.curve(
    "trajectory/training_loss",
    "training loss (compare runs at the same one only)",
    "mean loss of an example of the fixed probe, in eval mode, without dropout",
    "the axis of every comparison: look here first",
)
TRAJECTORY_DISTANCE = _TRAJECTORY.curve(
    "trajectory/distance_from_start",
    "distance from the start",
    "how far the parameters are from where the path began, in their own unit",
    "with the training loss it explains more than all below; a run that comes to the same loss in a shorter way "
    "changed its initialisation less",
)
TRAJECTORY_GROWTH, TRAJECTORY_GROWTH_LOW, TRAJECTORY_GROWTH_HIGH = _TRAJECTORY.interval(
    "trajectory/distance_growth",
    "exponent of the distance's growth, of the halves and the whole path (1: straight ahead, .5: random walk)",
    "exponent of the distance against steps, over the whole path and over its halves: 1 straight ahead, .5 a "
    "random walk, near 0 it stays",
    "near 0: it no longer goes anywhere, a lower learning rate or the end is due; about .5 for long: noise moves "
    "it. `_low` and `_high` far apart: no single power, read the distance itself",
)
TRAJECTORY_TREE = _TRAJECTORY.curve(
    "trajectory/spanning_tree_length",
    "length of the spanning tree of 64 points of the path",
    "length of the shortest tree through 64 points of the path, evenly spread from the start to now",
    "far above the distance: the path goes to and fro (large steps, small batches). It may fall: the same 64 "
    "points cover ever more steps",
)
TRAJECTORY_MAGNITUDE = _TRAJECTORY.curve(
    "trajectory/positive_magnitude",
    "positive magnitude (1: all points together, 64: none near another)",
    "how many of the 64 points count as separate at the scale 1/sqrt(training examples): 1 all together, 64 none "
    "near another",
    "if it sits at 64 the scale is too fine: `TrajectoryGeometry(scale=...)` of about one over the distance",
)

DWELL_COUNT, DWELL_ESCAPES = _DWELLING.curves(
    ("trajectory/dwell_count", "trajectory/dwell_escapes"),
    "dwells and escapes so far",
    "dwells so far, and jumps from one to the next",
    "escapes at a steady learning rate: noise still chooses between minima; let the rate fall when you like the place",
)
DWELL_LENGTH = _DWELLING.curve(
    "trajectory/dwell_length",
    "length of the present dwell (steps; 0: none)",
    "steps of the present dwell, 0 where there is none",
    "grows without end: training has arrived; more steps at this rate move nothing but noise. Average the weights "
    "(`Averaging`), lower the rate, or stop",
)
DWELL_DISTANCE = _DWELLING.curve(
    "trajectory/dwell_distance",
    "distance of the present dwell from the beginning",
    "how far the present dwell lies from where the path began",
    "compare with the distance between dwells on the card: small jumps are neighbours",
)
DIFFUSION_EXPONENT = _DWELLING.curve(
    "trajectory/diffusion_exponent",
    "diffusion exponent (0: stays, 1: random walk, 2: drifts)",
    "how the mean squared displacement grows: 0 stays, 1 wanders as a random walk does, 2 drifts",
    "2 for long: still on the way down, nothing to do. 1: flat directions, or a rate so large that nothing holds",
)
ONE_POINT_CONVEXITY, ONE_POINT_CONVEXITY_ERROR = _DWELLING.curves(
    ("trajectory/one_point_convexity", "trajectory/one_point_convexity_error"),
    "one-point convexity and its standard error (over 0: gradients point back to the centre of the dwell)",
    r"<g, w - centre> / \|w - centre\|^2 over the present dwell: the curvature of a bowl that pulls back (h for "
    r"h\|w\|^2/2), with its standard error",
    "more than two errors over 0: the place holds. Around 0: a plateau",
)
DWELLS = "trajectory/dwells"

OVERHEAD = _COST.curve(
    "complexity/overhead",
    "share of the wall time",
    "share of the wall time that the monitor used",
    "should be at or below the budget; higher in the first seconds, when the first measurement is paid in advance",
)

# Pictures and histograms.

EXAMPLE_NORMS = "gradient/example_norms"
GRADIENT_SPECTRUM = "gradient/spectrum"
PROBE_GRADIENT_SPECTRUM = on_probe(GRADIENT_SPECTRUM)
RESIDUAL_SPECTROGRAM = "complexity/residual_spectrogram"
BAND_DECAY = "complexity/band_decay"
TAIL_QUANTILES = "tail/quantiles"
TAIL_SURVIVAL = "tail/survival"


def _charts() -> dict[str, dict[str, tuple[str, list[str]]]]:
    charts: dict[str, dict[str, tuple[str, list[str]]]] = {}
    for curve in CURVES:
        if curve.chart:
            _, tags = charts.setdefault(curve.category, {}).setdefault(curve.chart, (curve.kind, []))
            tags.extend(curve.drawn)
    return charts


CHARTS = _charts()
"""Category -> title of a chart -> its kind and tags."""


def with_tables(text: str) -> str:
    """Return a page in which what is between `<!-- curves: NAME -->` and its end is the table of that name."""
    end = "<!-- end of curves -->\n"
    for name in {curve.table for curve in CURVES}:
        before, begin, rest = text.partition(f"<!-- curves: {name} -->\n")
        if begin:
            head = "| curve | what it says | what to do with it |\n|---|---|---|\n"
            rows = "".join(f"{curve.row}\n" for curve in CURVES if curve.table == name)
            text = before + begin + head + rows + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":  # make tables
    for page in map(Path, sys.argv[1:]):
        page.write_text(with_tables(page.read_text()))
