"""llama.cpp's convert_lora_to_gguf.py over many folders, which imports torch once.

PYTHON job_convert_lora.py SCRIPT BASE OUT FOLDER... writes OUT/NAME.gguf, or OUT/NAME.error with what it said."""

import contextlib
import io
import logging
import runpy
import sys
import traceback
from pathlib import Path


def main(script: str, base: str, out: str, *folders: str) -> None:
    sys.path.insert(0, str(Path(script).parent))  # as if it were started itself: it imports what lies beside it
    for folder in folders:
        target, log = Path(out) / f"{Path(folder).name}.gguf", io.StringIO()
        sys.argv = [script, "--base", base, "--outfile", str(target), folder]
        logging.getLogger().handlers = [logging.StreamHandler(log)]
        try:
            with contextlib.redirect_stderr(log):
                runpy.run_path(script, run_name="__main__")
            failed = False
        except SystemExit as end:
            failed = bool(end.code)
        except Exception:
            traceback.print_exc(file=log)
            failed = True
        if failed:
            target.unlink(missing_ok=True)
            target.with_suffix(".error").write_text(log.getvalue())


if __name__ == "__main__":
    main(*sys.argv[1:])
