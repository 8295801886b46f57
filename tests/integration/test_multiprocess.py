"""The same training under several processes: `accelerate launch` and a notebook's launcher."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent

OF_A_BATCH = {"cascadebert", "consistentee", "l2w", "smartbert"}
"""Methods that two processes train in another way than one: pairs, halves and the mean gates that SmartBERT's skip term
divides by are those of a process's own share of a batch, and policies draw at random."""

_TRAIN = """
    import sys
    from pathlib import Path

    import torch
    from safetensors.torch import save_model

    from eeutils.papers import deebert, pabee
    from eeutils.training.settings import Setting
    from eeutils.training.loop import fit
    from tests.tiny import tiny_model, tiny_samples


    def train(folder, samples, checkpoints):
        torch.set_num_threads(1)
        folder = Path(folder)
        model = tiny_model(pool="mean", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        for head in model.exits.values():
            head.dropout.p = 0.0
        seen = set()
        forward = model.forward

        def watched(input_ids, attention_mask, token_type_ids=None):
            if model.training:
                seen.update(tuple(row[row != 0].tolist()) for row in input_ids)
            return forward(input_ids, attention_mask, token_type_ids)

        model.forward = watched
        setting = Setting(epochs=2, batch_size=8, learning_rate=1e-3, head_rate=1.0)
        train = tiny_samples(int(samples), longest=12)
        phases = [*pabee.METHOD.phases(None), *deebert.phases(None)]
        fit(
            model, phases, train, setting, folder / "checkpoints",
            progress=False, checkpoint_seconds=float(checkpoints),
        )
        del model.forward
        rank = int(__import__("os").environ.get("RANK", 0))
        save_model(model, str(folder / f"model-{rank}.safetensors"))
        (folder / f"seen-{rank}.txt").write_text("\\n".join(map(str, sorted(seen))))


    if __name__ == "__main__":
        folder, samples, checkpoints, launcher = sys.argv[1:]
        if launcher == "notebook":
            from accelerate import notebook_launcher

            notebook_launcher(train, (folder, samples, checkpoints), num_processes=2)
        else:
            train(folder, samples, checkpoints)
"""

_TRAIN_ALL = """
    import os
    import sys
    from pathlib import Path

    import torch
    from safetensors.torch import save_model

    from eeutils.data import tasks
    from eeutils.models.small_attention import SmallAttention
    from eeutils.training.runs import load_or_train
    from eeutils.training.settings import Setting
    from tests.integration.test_papers import METHODS
    from tests.tiny import tiny_encoder, tiny_task, tiny_tokenizer


    if __name__ == "__main__":
        torch.set_num_threads(1)
        # Else each process would drop what it likes.
        torch.nn.Dropout.forward = lambda self, values: values
        SmallAttention.rate = property(lambda self: 0.0, lambda self, rate: None)
        tasks.load_task = lambda name, **sizes: tiny_task(name, 16)
        folder, encoder = Path(sys.argv[1]), Path(sys.argv[1]).parent / "encoder"
        os.environ["EEUTILS_RUNS"] = str(folder / "runs")
        if not encoder.exists():
            tiny_encoder(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(encoder)
            tiny_tokenizer().save_pretrained(encoder)
        setting = Setting(backbone=str(encoder), epochs=2, batch_size=4, learning_rate=1e-3, max_length=40)
        rank = os.environ.get("RANK", "0")
        for method in METHODS:
            more = {"models": (str(encoder),), "folds": 2, "repeats": 1} if hasattr(method.options, "folds") else {}
            run = load_or_train(method, setting, progress=False, **more)
            save_model(run.model(), str(folder / f"{method.name}-{rank}.safetensors"))
            (folder / f"{method.name}-{rank}.txt").write_text(str(run.dev.logits.isfinite().all().item()))
"""


def run(folder: Path, launcher: str, samples: int, checkpoints: float = 60.0, code: str = _TRAIN) -> None:
    folder.mkdir()
    script = folder / "train_tiny.py"
    script.write_text(textwrap.dedent(code))
    before = {
        # With --cpu, Accelerate starts a single process unless MPI is there.
        "accelerate": [
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--main_process_port",
            "0",
        ],
    }.get(launcher, [])
    unset = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    arguments = [str(folder), str(samples), str(checkpoints), launcher]
    done = subprocess.run(
        [sys.executable, *before, str(script), *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-12000:]


def weights(folder: Path, rank: int = 0, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def seen(folder: Path) -> set[str]:
    return {line for path in folder.glob("seen-*.txt") for line in path.read_text().splitlines()}


def compare(one: Path, two: Path, model: str = "model", tolerance: float = 1e-5) -> None:
    theirs = weights(two, name=model)
    for name, tensor in weights(one, name=model).items():
        if "key.bias" in name:
            continue  # softmax does not see it: its gradient is rounding alone, which Adam makes as large as any
        torch.testing.assert_close(theirs[name], tensor, atol=tolerance, rtol=tolerance, msg=f"{model} {name}")


# Saved after every step, and by the clock, on which the processes must not disagree: they would wait for ever.
@pytest.mark.parametrize(("launcher", "checkpoints"), [("accelerate", 0.0), ("notebook", 0.02)])
def test_two_processes_train_the_same_model_as_one(tmp_path: Path, launcher: str, checkpoints: float) -> None:
    run(tmp_path / "one", "alone", 32)
    run(tmp_path / "two", launcher, 32, checkpoints=checkpoints)
    compare(tmp_path / "one", tmp_path / "two")
    first, second = weights(tmp_path / "two", 0), weights(tmp_path / "two", 1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_train_every_method_as_one_does(tmp_path: Path) -> None:
    run(tmp_path / "one", "alone", 0, code=_TRAIN_ALL)
    run(tmp_path / "two", "accelerate", 0, code=_TRAIN_ALL)
    names = {path.stem.rsplit("-", 1)[0] for path in (tmp_path / "one").glob("*.safetensors")}
    assert names >= {"deebert", "pabee", "hashee", *OF_A_BATCH}
    for name in names:
        first, second = (weights(tmp_path / "two", rank, name) for rank in (0, 1))
        assert all(torch.equal(first[part], second[part]) for part in first), f"{name}: the processes drift apart"
        assert (tmp_path / "two" / f"{name}-0.txt").read_text() == "True"
        if name not in OF_A_BATCH:
            # Weights move by a hundred times as much; Adam makes rounding large where gradients are next to nothing.
            compare(tmp_path / "one", tmp_path / "two", name, tolerance=5e-4)


def test_no_sample_is_left_out_when_a_batch_is_not_full(tmp_path: Path) -> None:
    run(tmp_path / "one", "alone", 29)
    run(tmp_path / "two", "accelerate", 29)
    assert seen(tmp_path / "one") == seen(tmp_path / "two")
