"""Runs on shards and on a data set of the datasets library: killed within an epoch, continued."""

import io
import tarfile

import pytest
from killing import differences, draw_images, log, outcome, small_run

pytest.importorskip("webdataset", reason="pip install -e '.[shards]'")
datasets = pytest.importorskip("datasets", reason="pip install -e '.[hf]'")

CLASSES = ("dark", "light")


def images(root, part):
    """(class, file) of a part, the classes mixed."""
    found = [(path.parent.name, path) for path in (root / part).rglob("*.png")]
    return sorted(found, key=lambda pair: (pair[1].stem, pair[0]))


def write_shards(root, out):
    out.mkdir()
    for part, each in (("train", 17), ("test", 9)):
        files = images(root, part)
        for at in range(0, len(files), each):
            with tarfile.open(out / f"{part}-{at // each:06}.tar", "w") as archive:
                for number, (cls, path) in enumerate(files[at : at + each], at):
                    for name, data in (("png", path.read_bytes()), ("cls", cls.encode())):
                        member = tarfile.TarInfo(f"{number:04}.{name}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))


def write_dataset(root, out):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )

    def split(part):
        rows = images(root, part)
        column = [{"bytes": path.read_bytes(), "path": None} for _, path in rows]
        labels = [CLASSES.index(cls) for cls, _ in rows]
        return datasets.Dataset.from_dict({"image": column, "label": labels}, features=features)

    whole = datasets.DatasetDict({part: split(part) for part in ("train", "test")})
    whole.save_to_disk(str(out))


@pytest.fixture(scope="module", params=["webdataset", "hf"])
def place(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    draw_images(place / "images")
    write = write_shards if request.param == "webdataset" else write_dataset
    write(place / "images", place / "data")
    return place


@pytest.fixture(scope="module")
def arguments(place):
    data = {
        "webdataset": [
            "data=webdataset",
            f"data.train='{place}/data/train-{{000000..000004}}.tar'",
            f"data.test={place}/data/test-*.tar",
            "data.shards_at_once=2",
        ],
        "hf": ["data=hf", f"data.path={place}/data"],
    }
    chosen = next(each for name, each in data.items() if place.name.startswith(name))
    return [*chosen, "data.hold=stream", "data.workers=2", *small_run(place / "images")[2:]]


@pytest.mark.slow
def test_killed_within_an_epoch_and_continued(runs, place, arguments, whole):
    command = [*arguments, "hydra.run.dir=killed", "resume=auto"]
    for at, count in (("half:last.ckpt", 5), ("batch", 3)):
        assert runs.run(command, place, at, count=count) == -9, log(place)
    (place / "log.txt").unlink()
    assert runs.run(command, place) == 0, log(place)
    assert "in epoch 1, after its batch 6" in log(place)
    assert differences(whole, outcome(place / "killed")) == []
