"""Updates on the device: images a second, share of the card's peak, memory, kernels and waits.

    python -m benchmarks.gpu.training [--device cpu --tiny] [--seconds 2] [--compiled]

"train.py" is its trainer with the released captioning recipe's flags; "plain" is the loop that PyTorch's own parts
make of the same model and loss: float32 weights, autocast, fused AdamW, foreach clipping, a channels-last trunk.
Each further line changes one thing of it. Batches are rows of the golden captions, repeated: nothing is read while the
clock runs. --compiled measures plain and compiled layers alone, in both loops.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ofa_module  # isort: skip  # noqa: F401

import torch
from fairseq import tasks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import train
from benchmarks.gpu import measure
from models.fairseq_ofa import FairseqOFA
from models.ofa.compiling import compile_layers
from ofa_module.engine.trainer import OFATrainer

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/golden/tsv/caption"
POSITIONS = ("rel_pos_table", "pos_q_linear", "pos_k_linear")  # parameters that only the attention biases have
Update = Callable[[], Any]


def flags(arch: str, side: int, device: str, *more: str) -> list[str]:
    """Command line of stage-1 captioning."""
    small = [f"--bpe-dir={ROOT}/digits/BPE", "--code-dict-size=1024", "--num-bins=65"]
    vocabulary = small if arch == "ofa_demo" else [f"--bpe-dir={ROOT}/utils/BPE"]
    return [
        f"{DATA}/caption_train.tsv,{DATA}/caption_val.tsv", f"--arch={arch}", "--task=caption", "--selected-cols=0,4,2",
        "--criterion=adjust_label_smoothed_cross_entropy", "--label-smoothing=0.1", f"--patch-image-size={side}",
        *vocabulary, "--optimizer=adam", "--adam-betas=(0.9,0.999)", "--weight-decay=0.01",
        "--lr=1e-5", "--lr-scheduler=fixed", "--clip-norm=1.0", "--dropout=0.1", "--batch-size=8", "--num-workers=0",
        "--encoder-drop-path-rate=0.1", "--decoder-drop-path-rate=0.1", "--max-tgt-length=20",
        "--freeze-encoder-embedding", "--freeze-decoder-embedding", "--scale-attn", "--scale-fc", "--scale-heads",
        "--disable-entangle", "--save-dir=/tmp/ofa_benchmark", *(["--cpu"] if device == "cpu" else []), *more,
    ]  # fmt: skip


class Setting:
    """Task, loss, model and rows of one size."""

    def __init__(self, arch: str, side: int, device: str) -> None:
        self.device, self.flags = device, partial(flags, arch, side, device)
        self.cfg = train.parse_args(self.flags())
        self.task = tasks.setup_task(self.cfg.task)
        self.task.load_dataset("train")
        dataset = self.task.dataset("train")
        self.rows, self.collate = [dataset[i] for i in range(len(dataset))], dataset.collater

    def batch(self, size: int) -> dict[str, Any]:
        """A batch on the CPU, as the trainer takes it."""
        return self.collate([self.rows[i % len(self.rows)] for i in range(size)])

    def network(self) -> FairseqOFA:
        """A new model on the device."""
        torch.manual_seed(1)
        with torch.device(self.device):
            return self.task.build_model(self.cfg.model).train()

    def trainer_update(self, size: int, *more: str) -> Update:
        """train.py's update, its batch coming from the CPU."""
        cfg = train.parse_args(self.flags(*more))
        torch.manual_seed(1)
        trainer = OFATrainer(cfg, self.task, self.task.build_model(cfg.model), self.task.build_criterion(cfg.criterion))
        trainer.begin_epoch(1)
        batch = self.batch(size)
        return lambda: trainer.train_step([batch])

    def plain_update(self, size: int, dtype: torch.dtype | None = torch.bfloat16, change: str = "") -> Update:
        """The loop of PyTorch's own parts; `change` names what is different."""
        model, criterion = self.network(), self.task.build_criterion(self.cfg.criterion)
        if self.device == "cuda" and change != "contiguous trunk":
            model.encoder.embed_images.to(memory_format=torch.channels_last)
        if change == "layers compiled":
            compile_layers(model)
        frozen = {"no gradient of the position biases": POSITIONS, "frozen trunk": ("embed_images",)}.get(change, ())
        for name, parameter in model.named_parameters():
            if any(part in name for part in frozen):
                parameter.requires_grad_(False)
        parameters = [p for p in model.parameters() if p.requires_grad]
        fused = change != "foreach AdamW"
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=fused, foreach=None if fused else True)
        batch = to_device(self.batch(size), self.device)

        def update() -> None:
            with measure.autocast(self.device, dtype):
                loss, sample_size, _ = criterion(model, batch)
            if change == "forward and loss alone":
                return
            (loss / sample_size).backward()
            if change == "no clipping, no step":
                return optimizer.zero_grad(set_to_none=True)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return update

    def operations(self) -> float:
        """Floating-point operations of one image's update: three times its forward pass's."""
        model, batch = self.network().eval(), to_device(self.batch(1), self.device)
        counter = FlopCounterMode(display=False)
        with counter:  # its hooks need gradients
            model(**batch["net_input"])
        return 3.0 * counter.get_total_flops()


def to_device(value: Any, device: str) -> Any:
    """A batch's tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return {key: to_device(entry, device) for key, entry in value.items()} if isinstance(value, dict) else value


def sides(setting: Setting, arch: str, device: str, tiny: bool) -> Iterator[tuple[str, int, Callable[[], Update]]]:
    """What is measured of a size: name, batch, how to make an update."""
    plain = setting.plain_update
    for flag in ("--fp16", "--bf16") if device == "cuda" else ("",):
        yield f"train.py {flag}", 8, partial(setting.trainer_update, 8, *([flag] if flag else []))
    batches = (2, 4) if tiny else (8, 32, 64)
    for size in batches:
        yield "plain, bf16", size, partial(plain, size)
    if tiny or arch == "ofa_large":
        return
    yield "plain, float32", 8, partial(plain, 8, None)
    for change in (
        "contiguous trunk", "foreach AdamW", "no gradient of the position biases", "frozen trunk",
        "no clipping, no step", "forward and loss alone",
    ):  # fmt: skip
        yield (
            f"plain, bf16, {change}",
            batches[len(batches) // 2],
            partial(plain, batches[len(batches) // 2], change=change),
        )


def add_rows(setting: Setting, arch: str, todo: Any, peak: float, seconds: float) -> None:
    """Measures and prints a row for each side; kernels are counted once a loop and precision."""
    device, work = setting.device, setting.operations()
    seen: set[str] = set()
    for name, size, make in todo:
        counted = name.count(",") < 2 and name not in seen
        seen.add(name)
        try:
            update = make()
            each = measure.measure(update, device, seconds)
            memory = measure.peak_gigabytes(update, device)  # not of the first one, before which there are no moments
            counts = measure.count(update, device) if counted else ("", "", "")
            figures = (1000 * each, size / each, 100 * work * size / each / peak, memory, *counts)
        except (RuntimeError, AttributeError, TypeError) as error:
            figures = (f"{type(error).__name__}: {error}", *[""] * 6)
        measure.add_row(arch, name, size, *figures)
        update = make = None
        measure.free(device)


def print_kernels(update: Update) -> None:
    """Where the device's time goes in one update: the 16 kernels that take most."""
    update()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        update()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in record.events():
        if event.device_type.name == "CUDA":
            kernels.setdefault(event.name, []).append(event.device_time)
    total = sum(map(sum, kernels.values()))
    measure.begin_table("kernel", "calls", "ms", "%")
    for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:16]:
        measure.add_row(name[:110], len(times), sum(times) / 1000, 100 * sum(times) / total)
    print(f"\nAll kernels: {total / 1000:.1f} ms.")


def main() -> None:
    """Measures and prints."""
    parser = measure.make_parser(__doc__ or "")
    parser.add_argument("--compiled", action="store_true", help="compiled layers against plain ones")
    args = parser.parse_args()
    device = args.device
    peak = measure.product_flops(device, args.tiny)
    head = ("model", "loop", "batch", "ms an update", "images a second", "% of peak", "peak GB")
    measure.begin_table(*head, "kernels", "waits", "operators")
    if args.compiled:
        arch, side, size = ("ofa_demo", 48, 4) if args.tiny else ("ofa_base", 480, 32)
        setting = Setting(arch, side, device)
        changes = ("", "layers compiled")
        todo = [
            (f"plain, bf16, {change}", size, partial(setting.plain_update, size, change=change)) for change in changes
        ]
        for more in ((), ("--compile",)):
            name = " ".join(["train.py --bf16", *more])
            todo.append((name, size, partial(setting.trainer_update, size, "--bf16", *more)))
        add_rows(setting, arch, todo, peak, args.seconds)
        return
    for arch, side in [("ofa_demo", 48)] if args.tiny else [("ofa_base", 480), ("ofa_large", 480)]:
        setting = Setting(arch, side, device)
        add_rows(setting, arch, sides(setting, arch, device, args.tiny), peak, args.seconds)
        if device == "cuda" and arch != "ofa_large":
            print(f"\nOne update of {arch}, 32 images, plain, bf16:")
            print_kernels(setting.plain_update(32))
            measure.begin_table(*head, "kernels", "waits", "operators")


if __name__ == "__main__":
    main()
