"""Use an installed planner without extras from a project that has its own models/, runtime/ and codegen.py.

Run by ``make install-check`` with the Python of an environment that holds nothing but the wheel and what it needs.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = {
    "models/net.py": "WIDTH = 32\n",
    "runtime/speed.py": "LIMIT = 7\n",
    "codegen.py": "WORD = 'mine'\n",
    "main.py": '''
import codegen
import torch
import torch.nn.functional as F
from models.net import WIDTH
from runtime.speed import LIMIT

import planner
from planner.runtime.masked_dense import MaskedDense


class Model(torch.nn.Module):
    """Attention over the pixels of an image, in two heads."""

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Conv2d(3, WIDTH, 1)

    def forward(self, image):
        tokens = self.project(image).flatten(2).mT.unflatten(-1, (2, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


assert (codegen.WORD, LIMIT) == ("mine", 7), "a module of planner's stands before the project's own"
torch.manual_seed(0)
model, image = Model().eval(), torch.randn(1, 3, 24, 40)
plan = planner.make_plan(model, (image,), pattern="crisscross", group="4x4", min_speedup=0)
plan.save("plan.json")
assert planner.Plan.load("plan.json") == plan
with torch.no_grad():
    planned = planner.compile(model, plan=plan)(image)
    with MaskedDense(plan):
        judged = model(image)
    torch.testing.assert_close(planned, judged, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(planned, model(image), atol=1e-3), "it ran dense"
print('planner', planner.__version__, str(plan.decisions[0].pattern), "agrees with masked dense attention")
''',
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in PROJECT.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([sys.executable, "main.py"], cwd=folder, env=alone, check=True)
        for command in (["--help"], ["--version"], ["show", "plan.json"]):
            subprocess.run([Path(sys.executable).with_name("planner"), *command], cwd=folder, env=alone, check=True)


if __name__ == "__main__":
    main()
