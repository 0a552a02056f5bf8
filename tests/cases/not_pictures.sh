#!/usr/bin/env bash
# What people pass as DATA: a tar.gz, .npz, .h5, a page saved as .zip, a folder of zips, a zip of a zip, an empty zip, one picture.
# Expected: a sentence each that says what it is and what to do; no traceback.
. "$(dirname "$0")/prelude.bash"
study photos
"$PY" - <<'PY'
import numpy as np, pathlib, zipfile, tarfile, io
from PIL import Image
rng = np.random.default_rng(0); pathlib.Path("photos").mkdir(); pathlib.Path("d").mkdir()
for i in range(30): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"photos/{i:03}.png")
with tarfile.open("d/photos.tar.gz", "w:gz") as t: t.add("photos")
np.savez("d/photos.npz", images=np.zeros((10, 32, 32, 3), np.uint8)); pathlib.Path("d/photos.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
pathlib.Path("d/page.zip").write_text("<!DOCTYPE html><html>Google Drive - Quota exceeded</html>")
with zipfile.ZipFile("photos.zip", "w") as z:
    for p in pathlib.Path("photos").iterdir(): z.write(p)
pathlib.Path("d/folder_of_zips").mkdir(); pathlib.Path("d/folder_of_zips/img_align_celeba.zip").write_bytes(pathlib.Path("photos.zip").read_bytes())
with zipfile.ZipFile("d/zip_of_zip.zip", "w") as z: z.write("photos.zip", "archive/img_align_celeba.zip")
with zipfile.ZipFile("d/empty.zip", "w"): pass
pathlib.Path("d/one.png").write_bytes(pathlib.Path("photos/000.png").read_bytes()); pathlib.Path("d/empty_folder").mkdir()
PY
bad=""
for x in d/*; do "$HARNESS" data prepare photos --data "$x" >out 2>&1; code=$?; echo "--- $x (exit code $code)"; sed "s#$W/##g" out
  grep -q Traceback out && bad="$bad $x(traceback)"; [ $code = 0 ] && bad="$bad $x(taken)"; done
"$HARNESS" data prepare photos --data d/folder_of_zips >out 2>&1; grep -q "img_align_celeba.zip\|zip inside\|a zip" out || bad="$bad folder_of_zips(does not say that a zip is in it)"
"$HARNESS" data prepare photos --data d/page.zip >out 2>&1; sed "s/page.zip//" out | grep -qi "html\|page\|download" || bad="$bad page.zip(does not say that it is a web page)"
[ -z "$bad" ] && pass "each answered" || fail "$bad"
