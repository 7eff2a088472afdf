"""Data sets that TFDS wrote, without TensorFlow and without a network."""

import io
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from mmrl.data.inspection import columns_of
from mmrl.data.sources import fingerprint, read

tfds = pytest.importorskip("tensorflow_datasets")


def _png(value):
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (value, value, value)).save(out, "PNG")
    return out.getvalue()


def _write(folder, sizes):
    """A data set of `sizes` rows by split, written by TFDS itself; the directory of its version."""
    features = tfds.features.FeaturesDict(
        {
            "problem": tfds.features.Text(),
            "answer": tfds.features.Scalar(np.int64),
            "images": tfds.features.Sequence(tfds.features.Image()),
            "picture": tfds.features.Image(),
            "pixels": tfds.features.Tensor(shape=(6, 8, 3), dtype=np.uint8),
            "turns": tfds.features.Sequence(tfds.features.Text()),
            "facts": tfds.features.Text(),
            "width": tfds.features.Scalar(np.float32),
        }
    )

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {split: self._generate_examples(size) for split, size in sizes.items()}

        def _generate_examples(self, size):
            for k in range(size):
                yield (
                    k,
                    {
                        "problem": f"<image>é {k}",
                        "answer": k,
                        "images": [io.BytesIO(_png(k)) for _ in range(1 + k % 2)],
                        "picture": io.BytesIO(_png(10 + k)),
                        "pixels": np.full((6, 8, 3), 20 + k, np.uint8),
                        "turns": ["one", "two"][: k % 3],
                        "facts": f'{{"k": {k}}}',
                        "width": np.float32(k + 0.1),
                    },
                )

    builder = Tiny(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return folder / "tiny" / "1.0.0"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("tfds"), {"train": 5, "test": 2})


def _by_answer(source):
    """TFDS shuffles as it writes."""
    return {int(sample.answer): sample for sample in source}


def test_a_directory(written):
    rows = _by_answer(read(f"{written}:train"))
    assert sorted(rows) == list(range(5))
    for k, sample in rows.items():
        assert sample.problem == f"<image>é {k}"
        assert sample.images == (_png(k),) * (1 + k % 2)
        assert sample.turns == ("one", "two")[: k % 3]
        assert sample.facts == {"k": k}
    assert len(read(f"{written}:train[1:3]")) == 2


@pytest.mark.parametrize(("column", "offset"), [("picture", 10), ("pixels", 20)])
def test_one_image_encoded_or_not(written, column, offset):
    for k, sample in _by_answer(read(f"{written}:test", columns={"images": column})).items():
        (image,) = sample.images
        pixels = np.asarray(Image.open(io.BytesIO(image)))
        assert (pixels == offset + k).all()
        assert pixels.shape == (6, 8, 3)


def test_its_columns(written):
    found = {column.name: column for column in columns_of(read(f"{written}:train"))}
    assert [name for name, column in found.items() if not column.used_as] == ["picture", "pixels", "width"]
    assert "Image(shape=(None, None, 3)" in found["picture"].type


@pytest.mark.parametrize("name", ["tfds:tiny:train", "tfds:tiny:1.0.0:train"])
def test_by_name(written, monkeypatch, name):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(written.parent.parent))
    source = read(name)
    assert len(source) == 5
    assert source[1].id == "tiny:train:1"
    assert [s.answer for s in source] == [s.answer for s in read(f"{written}:train")]
    monkeypatch.undo()
    again = pickle.loads(pickle.dumps(source.choose([2])))
    assert (again[0].id, again[0].images) == (source[2].id, source[2].images)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:no_such_data", "TFDS has no data set 'no_such_data' on this machine"),
        ("tfds:mnist:train", "none is downloaded here"),
        ("tfds:", "not of the form tfds:NAME"),
        ("tfds:a:b:c", "not of the form tfds:NAME"),
        ("DIR", "has the splits test, train: add one"),
        ("DIR:dev", "split 'dev': Unknown split"),
        ("DIR:train[", "Error parsing split"),
    ],
)
def test_what_is_not_there(written, spec, message):
    with pytest.raises(ValueError, match=message):
        read(spec.replace("DIR", str(written)))


def test_a_missing_column(written):
    with pytest.raises(ValueError, match="no column 'question'"):
        read(f"{written}:train", columns={"problem": "question"})


def test_damaged_files(written, tmp_path):
    """An error of one kind, at opening or at the row, whatever is wrong."""
    for name in ("dataset_info.json", "features.json", "tiny-train.array_record-00000-of-00001"):
        for size in (0, 7):
            copy = tmp_path / f"{name}{size}"
            shutil.copytree(written, copy)
            (copy / name).write_bytes((copy / name).read_bytes()[:size])
            with pytest.raises(ValueError, match=rf"{copy}|tiny:train:0: its record cannot be read"):
                list(read(f"{copy}:train"))


def test_fingerprint(written, tmp_path):
    shutil.copytree(written, tmp_path / "copy")
    first = fingerprint(read(f"{written}:train"))
    assert fingerprint(read(f"{tmp_path / 'copy'}:train")) == first
    assert (
        len({first, *(fingerprint(read(f"{written}:{s}")) for s in ("test", "train[:2]", "train[2:4]"))}) == 4
    )


def test_a_number_in_32_bits_is_its_shortest_decimal(written):
    source = read(f"{written}:test", columns={"answer": "width"})
    assert sorted(sample.answer for sample in source) == [f"{k}.1" for k in range(len(source))]
