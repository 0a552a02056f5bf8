#!/usr/bin/env bash
# A zip packed by macOS: __MACOSX with ._ shadows, .DS_Store, a folder inside a folder, spaces, decomposed umlauts, emoji, .JPG and .Png, names in CP437.
# Expected: the 32 photographs, each once.
. "$(dirname "$0")/prelude.bash"
study photos
"$PY" - <<'PY'
import numpy as np, zipfile, io, unicodedata
from PIL import Image
rng = np.random.default_rng(0)
def picture(kind):
    b = io.BytesIO(); Image.fromarray(rng.integers(0, 255, (48, 40, 3), dtype=np.uint8)).save(b, kind); return b.getvalue()
with zipfile.ZipFile("img_align_celeba.zip", "w", zipfile.ZIP_DEFLATED) as z:
    z.writestr("img_align_celeba/.DS_Store", b"\0\0\0\1Bud1"); z.writestr("__MACOSX/._img_align_celeba", b"\0\5\x16\7")
    for i in range(32):
        name = ("{:03}.jpg", "{:03} of mine.JPG", unicodedata.normalize("NFD", "Größe {:03}.jpeg"), "\U0001F600 {:03}.Png")[i % 4].format(i)
        z.writestr(f"img_align_celeba/img_align_celeba/{name}", picture("PNG" if i % 4 == 3 else "JPEG"))
        z.writestr(f"__MACOSX/img_align_celeba/img_align_celeba/._{name}", b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(80))
    z.writestr("list_attr_celeba.csv", "image_id,5_o_Clock_Shadow\n")
PY
"$HARNESS" data prepare photos --data img_align_celeba.zip >out 2>&1; code=$?; cat out
[ $code = 0 ] && grep -q "^images *32 of" out && grep -q "^left out *0" out && pass "32 photographs" || fail "exit code $code"
