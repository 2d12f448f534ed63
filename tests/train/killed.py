"""Many runs of the real command from one process that has paid for the imports: each in a fork, some killed on the way.

    python -m tests.train.killed plan.json

The plan is a list of runs, `{"words": [...], "kill": null | {"at": "step" | "weights" | "state", "step": n}}`: SIGKILL
behind the optimizer step n; or while checkpoint n is written, with weights but no optimizer yet, or in the middle of
its last file. Printed is one line with the runs' statuses as `os.waitpid` tells them: 0 for success, 9 for a kill.
"""

import json
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Run the plan."""
    import matplotlib
    import peft  # noqa: F401 (imported once here, not in every fork)
    import torch
    import transformers

    matplotlib.use("Agg")
    import matplotlib.pyplot

    import train.run
    from train.cli import dispatch

    torch.set_num_threads(1)  # a fork of a process with threads of its own would hang

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def arm(kill: dict) -> None:
        if kill["at"] == "step":

            class Killing(train.run.ConsoleCallback):
                def on_step_end(self, args, state, control, **keywords):
                    if state.global_step == kill["step"]:
                        stop()

            train.run.ConsoleCallback = Killing
        elif kill["at"] == "weights":
            trainer = transformers.Trainer
            save = trainer._save_optimizer_and_scheduler

            def killing(self, output_dir):
                if self.state.global_step == kill["step"]:
                    stop()
                save(self, output_dir)

            trainer._save_optimizer_and_scheduler = killing
        else:
            state = transformers.TrainerState
            write = state.save_to_json

            def half(self, path):
                write(self, path)
                if self.global_step == kill["step"]:
                    text = Path(path).read_text()
                    Path(path).write_text(text[: len(text) // 2])
                    stop()

            state.save_to_json = half

    statuses = []
    for planned in json.loads(Path(sys.argv[1]).read_text()):
        child = os.fork()
        if child == 0:
            log = os.open(planned["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if planned["kill"]:
                arm(planned["kill"])
            code = 1
            try:
                code = dispatch(planned["words"])
            except Exception as error:
                print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(code)
        statuses.append(os.waitpid(child, 0)[1])
    print(json.dumps(statuses))


if __name__ == "__main__":
    main()
