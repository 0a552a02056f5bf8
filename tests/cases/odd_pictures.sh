#!/usr/bin/env bash
# Files of many kinds in one folder, pixels compared with what a person sees: palette, palette with transparency, grey + alpha, 1 bit,
# 16-bit grey, CMYK, EXIF-turned, animated GIF/WebP/APNG (first frame), progressive JPEG, MPO, wrong suffix, truncated, empty, text, 28 px.
. "$(dirname "$0")/prelude.bash"
study photos
"$PY" - <<'PY'
import numpy as np, pathlib, io
from PIL import Image
root = pathlib.Path("photos"); root.mkdir()
S = 32
half = np.zeros((S, S, 3), np.uint8); half[:, :16] = (250, 10, 10); half[:, 16:] = (10, 10, 250)     # left red, right blue
rgb = Image.fromarray(half); grey = np.zeros((S, S), np.uint8); grey[:16] = 200; grey[16:] = 40       # top light
L = Image.fromarray(grey)
rgb.save(root / "00 plain.png"); rgb.convert("P", palette=Image.Palette.ADAPTIVE).save(root / "01 palette.png")
p = rgb.convert("P", palette=Image.Palette.ADAPTIVE); p.save(root / "02 palette transparent.png", transparency=p.getpixel((0, 0)))
la = Image.merge("LA", (L, Image.fromarray(np.where(grey > 100, 0, 255).astype(np.uint8)))); la.save(root / "03 grey alpha.png")
Image.fromarray((grey > 100).astype(np.uint8) * 255).convert("1").save(root / "04 one bit.png")
Image.fromarray(grey.astype(np.uint16) * 257).save(root / "05 sixteen.png"); Image.fromarray(grey.astype(np.uint16) * 257).save(root / "06 sixteen.tif")
rgb.convert("CMYK").save(root / "07 cmyk.jpg", quality=95); rgb.convert("CMYK").save(root / "08 cmyk.tif")
turned = rgb.transpose(Image.Transpose.ROTATE_90); ex = Image.Exif(); ex[0x0112] = 6; turned.save(root / "09 turned.jpg", exif=ex, quality=95)
other = Image.fromarray(255 - half)
rgb.save(root / "10 animated.gif", save_all=True, append_images=[other]); rgb.save(root / "11 animated.webp", save_all=True, append_images=[other], lossless=True)
rgb.save(root / "12 apng.png", save_all=True, append_images=[other]); rgb.save(root / "13 progressive.jpg", progressive=True, quality=95)
rgb.save(root / "14 mpo.jpg", format="MPO", save_all=True, append_images=[other], quality=95)
rgb.save(root / "15 really a png.jpg", format="PNG"); rgb.save(root / "16 LOUD.JPG", format="JPEG", quality=95)
b = io.BytesIO(); Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(b, "JPEG"); (root / "90 truncated.jpg").write_bytes(b.getvalue()[:-900])
(root / "91 empty.png").write_bytes(b""); (root / "92 page.jpg").write_text("<html>quota exceeded</html>"); rgb.resize((28, 28)).save(root / "93 small.png")
PY
"$HARNESS" data prepare photos --data photos >out 2>&1; "$HARNESS" data info photos --data photos >>out 2>&1; cat out
"$PY" - <<'PY' && pass "all as a person sees them" || fail "see above"
import json, glob, numpy as np, os
folder = glob.glob(os.environ["HARNESS_HOME"] + "/data/folder-*")[0]; m = json.load(open(folder + "/manifest.json")); x = np.load(folder + "/images.npy")
names = sorted(p for p in os.listdir("photos") if p not in m["rejected"]); bad = 0
def near(a, b, tol=30): return np.abs(a.astype(int) - np.array(b)).max() < tol
for name, im in zip(names, x):
    left, right, top, bottom = im[16, 5], im[16, 26], im[5, 16], im[26, 16]
    k = int(name[:2])
    want = {2: ((255,)*3, (10, 10, 250)), 7: ((250, 10, 10), (10, 10, 250))}.get(k, ((250, 10, 10), (10, 10, 250)))
    if k in (3,): ok = near(top, (255,)*3) and near(bottom, (40,)*3)
    elif k == 4: ok = near(top, (255,)*3) and near(bottom, (0,)*3)
    elif k in (5, 6): ok = near(top, (200,)*3, 4) and near(bottom, (40,)*3, 4)
    else: ok = near(left, want[0]) and near(right, want[1])
    if not ok: bad += 1; print("WRONG", name, "left", left, "right", right, "top", top, "bottom", bottom)
for k in ("90", "91", "92", "93"):
    if not any(n.startswith(k) for n in m["rejected"]): bad += 1; print("WRONG not rejected", k)
print(len(x), "used;", {n: w for n, w in m["rejected"].items()}); raise SystemExit(bool(bad))
PY
