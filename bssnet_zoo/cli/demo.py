"""``bssnet-zoo demo``"""
import argparse
import tempfile
import threading
import webbrowser

from ..demo import SiteServer, write_site
from ..training.run_folder import trained_model
from .options import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "demo", help="a page that runs the network in your browser",
        description="Makes a page that segments pictures, videos and the camera in the browser, and shows it; with "
                    "--out writes it as static files, for any host. Pictures never leave the browser. Needs the extra "
                    "[export].")
    parser.add_argument("--model", nargs="+", metavar="NAME", help="models or model.tags that the page offers "
                        "(default: bssnet_t, or the one that the checkpoint fits)")
    parser.add_argument("--checkpoint", metavar="FILE", help="your weights, .safetensors or .pth, with their classes")
    parser.add_argument("--data", metavar="KIND:DIR", help="names and colours of the classes of a checkpoint that "
                        "doesn't know them: folder:DIR, camvid:DIR, cityscapes:DIR, nightcity:DIR")
    parser.add_argument("--size", type=int, metavar="N", help="what the network sees at first, the shorter side in "
                        "pixels (default: what the weights were made for, 480 at most)")
    parser.add_argument("--calibration", metavar="DIR", help="images like those that the page will see: the CPU then "
                        "runs the network in int8, twice as fast and a quarter as large")
    parser.add_argument("--runtime", metavar="DIR", help="an npm installation of onnxruntime-web, copied beside the "
                        "page, so that it needs no network (default: the page loads it from a CDN)")
    parser.add_argument("--out", metavar="DIR", help="write the page there and don't show it")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that has other files")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default: %(default)s, this machine "
                        "only)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port to serve at, 0 for any that is free "
                        "(default: %(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="don't open the page, print where it is")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.checkpoint and len(args.model or ()) > 1:
        raise ValueError(f"a checkpoint is of one model, --model names {len(args.model)}")
    if args.data and not args.checkpoint:
        raise ValueError("--data names the classes of a --checkpoint: there is none")
    names = args.model or [None]
    models = [trained_model(name, args.checkpoint, args.data) for name in names]
    if args.out:
        files = write_site(models, args.out, args.runtime, args.size, args.overwrite, args.calibration)
        print(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB, in {args.out}")
        return 0
    with tempfile.TemporaryDirectory(prefix="bssnet-zoo-demo-") as folder:
        with SiteServer(folder, args.host, args.port) as server:  # a taken port is known before the work
            write_site(models, folder, args.runtime, args.size, calibration=args.calibration)
            print(f"{server.url}  (Ctrl-C ends it)", flush=True)
            if not args.no_browser:
                threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()  # lynx stays in there
            server.serve_forever()
    return 0
