import json


def test_what_was_found(csham, images):
    code, out, err = csham("prepare", images, "--image-size", "16")
    assert code == 0
    assert "60 images of 16x16 pixels in 3 classes" in out
    assert "20 to 20 images each" in out
    assert err == ""


def test_json_alone_on_standard_output(csham, images):
    found = json.loads(csham("prepare", images, "--json")[1])
    assert found["classes"] == ["ant", "bee", "cow"]
    assert found["images"] == 60


def test_bad_files_are_listed_and_too_many_are_refused(csham, tmp_path, write_images):
    root = write_images(tmp_path / "animals")
    for index in range(12):
        (root / "ant" / f"bad{index}.png").write_bytes(b"not a picture")
    code, out, _ = csham("prepare", root, "--max-bad", "12")
    assert code == 0
    assert "bad0.png" in out
    assert "and 2 more" in out
    code, _, err = csham("prepare", root)
    assert code == 2
    assert "--max-bad" in err
