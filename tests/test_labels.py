"""Class names: every accepted form, and finding a class by name."""

import json

import pytest

from pellucid.errors import LoadError, TargetError
from pellucid.labels import find_label, load_labels


def test_imagenet_names_are_packaged_in_order():
    labels = load_labels("imagenet")
    assert len(labels) == 1000
    assert [labels[i] for i in (0, 207, 281, 999)] == [
        "tench",
        "golden retriever",
        "tabby",
        "toilet tissue",
    ]
    assert all(label == label.strip() != "" for label in labels)


def test_none_means_no_labels():
    assert load_labels(None) is None


@pytest.mark.parametrize(
    "content",
    [
        ["cat", "dog", "cat"],
        {"0": "cat", "2": "cat", "1": "dog"},
        {"0": ["n02", "cat"], "1": ["n01", "dog"], "2": ["n03", "cat"]},
    ],
)
def test_json_forms_give_the_same_names(tmp_path, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert load_labels(tmp_path / "a.json") == ("cat", "dog", "cat")
    assert load_labels(str(tmp_path / "a.json")) == ("cat", "dog", "cat")
    assert load_labels(content) == ("cat", "dog", "cat")


def test_class_indices_of_keras_are_turned_round(tmp_path):
    (tmp_path / "a.json").write_text('{"dog": 1, "cat": 0}')
    assert load_labels(tmp_path / "a.json") == ("cat", "dog")


def test_text_has_one_name_per_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffcat \r\nKäse, cheese\r\n\r\n".encode())
    assert load_labels(tmp_path / "a.txt") == ("cat", "Käse, cheese")


def test_tuple_and_mapping_by_integer_are_taken():
    assert load_labels(("a", "b")) == ("a", "b")
    assert load_labels({1: "b", 0: "a"}) == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", r"a\.json is no valid JSON"),
        ("a.json", b"3", "is no list of class names but int"),
        ("a.json", b'"cat"', "is no list of class names but str"),
        ("a.json", b'["a", 3]', "the label of class 1 is no text"),
        ("a.json", b'{"0": "a", "2": "b"}', "has no label for class 1"),
        ("a.json", b'{"cat": "a"}', "is no mapping of class names"),
        ("a.json", b"[]", "holds no labels"),
        ("a.txt", b"\n", "holds no labels"),
        ("a.txt", b"\xff\xfe\x00", "is no text"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadError, match=message) as caught:
        load_labels(tmp_path / name)
    assert name in str(caught.value)


def test_missing_file_folder_and_wrong_type_are_explained(tmp_path):
    with pytest.raises(LoadError, match=r"There is no file of labels .*a\.txt.*'imagenet'"):
        load_labels(tmp_path / "a.txt")
    with pytest.raises(LoadError, match="cannot be read: Is a directory"):
        load_labels(tmp_path)
    with pytest.raises(LoadError, match="labels= is no list of class names but int"):
        load_labels(3)


LABELS = ("tabby, tabby cat", "tiger cat", "crane", "Crane", "cat", "lynx, catamount", "crane")


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("tiger cat", 1),
        ("TIGER_cat ", 1),
        ("Tabby Cat", 0),
        ("tabby, tabby cat", 0),
        ("cat", 4),  # an exact name wins over the synonyms that hold it
        ("Crane", 3),  # and the exact case over the others
        ("catamount", 5),
    ],
)
def test_class_is_found_by_name(name, index):
    assert find_label(name, LABELS) == index


def test_ambiguous_name_lists_the_classes():
    with pytest.raises(
        TargetError, match=r"several classes: 2 'crane', 6 'crane'\. Give the index"
    ):
        find_label("crane", LABELS)
    with pytest.raises(TargetError, match="2 'crane', 3 'Crane', 6 'crane'"):
        find_label("CRANE", LABELS)


def test_unknown_name_offers_the_nearest():
    with pytest.raises(
        TargetError, match=r"No class is called 'tigre cat'\. Did you mean 'tiger cat'"
    ):
        find_label("tigre cat", LABELS)
    with pytest.raises(TargetError, match="There are none"):
        find_label("cat", ())
