"""Goldens by section: the statements of emitted kernels, each kept once for all kernels that have it.

A folder holds the goldens of kernels of one kind, a file for each section of their source. In it stand the variants of
each statement (a function, a constant) under a line ``#@`` that names the kernels that have it, in the order of the
source; so a changed helper is one difference, and what a kernel emits is what stands under its name.
"""

import ast
import re

MARK, ALL = "#@ ", "all"
_HEAD = re.compile(r"# ==== (.*) ====")


def statements(source):
    """Split a source into statements with the comments before them: section -> [(name, text)]."""
    lines, end, section = source.splitlines(), 0, "module"
    found = {section: []}
    for node in ast.parse(source).body:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]) - 1
        comments = [line for line in lines[end:first] if line]
        heads = [at for at, line in enumerate(comments) if _HEAD.fullmatch(line)]
        if heads:
            section = _HEAD.fullmatch(comments[heads[0]])[1].lower().replace(" ", "_")
            found[section] = [("head", "\n".join(comments))]
            comments = []
        end = node.end_lineno
        found[section].append((_name(node), "\n".join([*comments, *lines[first:end]])))
    return {section: found[section] for section in found if found[section]}


def write(folder, sources):
    """Write the goldens of kernels: sources by the kernels' names."""
    folder.mkdir(parents=True, exist_ok=True)
    split = {kernel: statements(source) for kernel, source in sources.items()}
    sections = list(dict.fromkeys(section for of in split.values() for section in of))
    for stale in folder.glob("*.py.txt"):
        stale.unlink()
    for section in sections:
        of_kernels = {kernel: of[section] for kernel, of in split.items() if section in of}
        (folder / f"{section}.py.txt").write_text("\n\n".join(_spell(of_kernels, set(sources))) + "\n")


def read(folder, kernels):
    """Read the goldens of kernels from their folder: kernel -> section -> [text]."""
    found = {kernel: {} for kernel in kernels}
    for path in sorted(folder.glob("*.py.txt")):
        for block in path.read_text().split(MARK)[1:]:
            names, text = block.split("\n", 1)
            for kernel in kernels if names == ALL else names.split():
                found[kernel].setdefault(path.name.removesuffix(".py.txt"), []).append(text.strip("\n"))
    return found


def _spell(of_kernels, every):
    """List the variants of each statement, in an order in which each kernel finds its own."""
    order = []
    for known in of_kernels.values():
        at = 0
        for name, _ in known:
            if name in order:
                at = order.index(name) + 1
            else:
                order.insert(at, name)
                at += 1
    for name in order:
        variants = {}
        for kernel, known in of_kernels.items():
            for text in (text for other, text in known if other == name):
                variants.setdefault(text, []).append(kernel)
        for text, kernels in variants.items():
            yield f"{MARK}{ALL if set(kernels) == every else ' '.join(kernels)}\n{text}"


def _name(node):
    """Name a statement alike in all kernels."""
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0])
    if isinstance(node, ast.Expr):
        return "docstring"
    return getattr(node, "name", None) or ast.unparse(node)
