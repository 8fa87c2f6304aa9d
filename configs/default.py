"""Every field that people set, with unit and source: config F of StyleGAN2 at 256 px [S2 Table 1].

[S1] arXiv 1812.04948. [S2] arXiv 1912.04958. [ADA] arXiv 2006.06676. [MSG] arXiv 1903.06048.
Presets change only what differs. Any field can be set on the command line:
`--config.loss.r1_gamma=2`. "kimg" are thousands of training images.
"""

from ml_collections import ConfigDict, FieldReference


def get_config():
  """The configuration that all presets start from."""
  c = ConfigDict()
  # Pixels: an int, or (height, width); both sides h0*2^k, with the longer of h0, w0 in 4..7.
  c.resolution = FieldReference(256, field_type=object)
  c.total_kimg = 25_000.0  # length of the run [S2 App. B]
  c.batch = 32  # images per minibatch, over all devices [S2 App. B]
  c.microbatch = 0  # images per round of gradient accumulation; 0: the whole batch
  c.seed = 0  # of weights, latents, noise and data order
  # Of products of float32 arrays in training. 'default': what is fast, one bfloat16 pass on TPUs,
  # TF32 on NVIDIA's Ampere and later; 'high': three passes on TPUs, TF32; 'highest': float32
  # everywhere, as in the paper's runs. CPUs always compute float32. Sampling and metrics are
  # 'highest' whatever stands here.
  c.precision = 'default'
  # Workdir, checkpoint, or network file (as of `sg2jax.tools.convert`) whose weights a new run
  # starts from; what doesn't fit is initialised and listed.
  c.init_from = ''
  c.device = ''  # what must be there: 'gpu', 'tpu', 'accelerator' (either); '': whatever JAX finds
  # Seconds that a minibatch, or reading it, may take; then the run shows where it hangs and ends
  # with code 76. 64 TFLOP, as of config F at 1024 px, are 600 s for 0.1 TFLOP/s. 0: for ever.
  c.watchdog_seconds = 600.0
  c.tick_kimg = 4.0  # kimg between status lines
  c.snapshot_kimg = 200.0  # kimg between image grids, SWD and checkpoints
  c.keep = 2  # number of latest checkpoints that are kept, besides the best by SWD
  # 'STEP,COUNT': a profile of so many minibatches from number STEP on (the first is 0), see
  # docs/performance.md; '': none.
  c.profile = ''
  c.metrics = ()  # measured in training, names as of `sg2jax.tools.evaluate`: ('fid50k_full',)
  c.metrics_kimg = 1000.0  # kimg between their measurements; the end is always measured
  c.swd_images = 512  # in the sliced Wasserstein distance of a snapshot, at most 128 px; 0: off

  c.data = ConfigDict()
  # A TFDS name ('digits' is bundled); '': the data set in data.dir, which `sg2jax.tools.prepare`
  # wrote.
  c.data.name = ''
  c.data.dir = ''  # directory of the data set, or TFDS data_dir; '': TFDS's default
  c.data.channels = 3  # as of `prepare --channels`: 1 grey, 3 RGB, 4 RGBA with straight alpha
  c.data.labels = False  # condition on the data set's labels [ADA App. D]
  # Let a run go on with other pictures than it began with; their classes must be as many.
  c.data.allow_change = False
  # Train on each image both ways, plain and flipped left to right (FFHQ: yes) [S2 App. B; ADA].
  c.data.mirror = False
  # Share of the pictures that are never trained on, chosen by their content, and by which a run
  # shows whether D learns the others by heart; in [0, 1).
  c.data.holdout = 0.0

  c.g = ConfigDict()
  # orig, skip, resnet [S2 Fig. 7], msg [MSG; only with d.architecture msg], revised (configs B-D),
  # stylegan1 (config A)
  c.g.architecture = 'skip'
  # Feature maps at res pixels: min(2 fmap_base / res, fmap_max) (configs A-E: 8192).
  c.g.fmap_base = 16_384
  c.g.fmap_max = 512
  c.g.z_dim = 512
  c.g.w_dim = 512
  c.g.mapping_layers = 8  # [S1 3.1]
  c.g.noise = True  # per-pixel noise inputs [S1 3.2]
  c.g.num_bf16_res = 0  # number of upper resolutions computed in bfloat16
  c.g.clamp = 0.0  # activations lie in +-clamp [ADA App. D: 256 with 16-bit floats]; 0: anywhere
  # Number of upper resolutions that are computed once more in the backward pass: less memory, and
  # for all of them (16) about a third more time.
  c.g.remat = 0
  # What networks of others do otherwise: fields of models/variant.py, such as `taps` of the FIR
  # filter. Imports set them; a run that starts from such a network has to, for g and d each:
  # --config.g.variant="{'taps': (1, 2, 1)}".
  c.g.variant = ConfigDict()

  c.d = ConfigDict()
  c.d.architecture = 'resnet'  # as g.architecture
  c.d.fmap_base = 16_384
  c.d.fmap_max = 512
  c.d.mapping_layers = 8  # of the label embedding, where labels are used
  c.d.mbstd_group_size = 4  # images per minibatch-stddev group, of one round
  # Layers from the image side that keep their weights (Freeze-D, Mo et al. 2020); init_from must
  # name a D that has them.
  c.d.freeze_layers = 0
  c.d.num_bf16_res = 0
  c.d.clamp = 0.0
  c.d.remat = 0
  c.d.variant = ConfigDict()  # as g.variant

  c.loss = ConfigDict()
  # R1 weight [S2 App. B]; a heuristic for a new data set: 0.0002 resolution^2 / batch [ADA].
  c.loss.r1_gamma = 10.0
  # Minibatches between R1 steps [S2 3.1]; 0: R1 is added to the main loss of every minibatch.
  c.loss.r1_interval = 16
  c.loss.pl_weight = 2.0  # path length weight; 0: off [S2 3.2]
  c.loss.pl_decay = 0.01  # of the moving average of path lengths
  c.loss.pl_interval = 4  # minibatches between path length steps, as r1_interval [S2 3.1]
  c.loss.pl_shrink = 2  # path lengths use 1/pl_shrink of the minibatch
  c.loss.mixing_prob = 0.9  # probability of style mixing [S1 3.1]

  c.opt = ConfigDict()
  c.opt.g_lr = 0.002  # Adam, before the correction for lazy regularization [S2 App. B]
  c.opt.d_lr = 0.002
  c.opt.beta1 = 0.0
  c.opt.beta2 = 0.99
  c.opt.eps = 1e-8
  c.opt.lr_rampup_kimg = 0.0  # kimg over which the learning rate rises from 0
  # Of details that the two reference implementations do differently. 'tensorflow' (S2's): Adam adds
  # eps before it corrects the bias, gradients of accumulation rounds are averaged; 'pytorch'
  # (ADA's): after it, summed.
  c.opt.formulation = 'pytorch'

  c.ema = ConfigDict()
  c.ema.kimg = 10.0  # half-life of the generator's moving average [S2 App. B]
  c.ema.rampup = 0.0  # half-life is at most rampup * images so far; 0: no ramp [ADA App. F]

  # Augmentation of all that D sees [ADA]: blit, geom, color, filter, noise, cutout, and their sums
  # bg, bgc (ADA's choice), bgcf, bgcfn, bgcfnc; auto: bgc with fewer than 10,000 pictures, else
  # none; '': none.
  c.augment = ConfigDict()
  c.augment.pipeline = ''
  c.augment.p = 0.0  # probability of each transform, at the start
  c.augment.target = 0.6  # of r_t, the mean sign of D's logits of reals, by p [ADA 3]; 0: p stays
  c.augment.interval = 4  # minibatches between moves of p
  # kimg in which p can rise from 0 to 1; 0: 500, and 100 after init_from [ADA 3, 4.2].
  c.augment.kimg = 0.0
  # What is otherwise than in the pipeline: fields of augment.py's Augment, such as
  # "{'rotate90': 0.0}" for pictures in which up must remain up.
  c.augment.variant = ConfigDict()

  # Progressive growing of the architectures revised and stylegan1 [S1; S2 Table 1 A-D]. Pixels are
  # of the longer side, 4, 8, 16 ...; for 6 * 2^k and the like, the power of 2 below.
  c.grow = ConfigDict()
  c.grow.start_res = 0  # pixels at the start (configs A-D: 8); 0: no growing
  c.grow.hold_kimg = 600.0  # kimg at each resolution
  c.grow.fade_kimg = 600.0  # kimg in the cross-fade to the next; 0: none
  c.grow.batch = ()  # ((pixels, images per minibatch), ...); others: `batch`
  c.grow.lr = ()  # ((pixels, learning rate of G and D), ...); others: opt.g_lr, opt.d_lr
  c.grow.repeats = 4  # minibatches between looks at this schedule
  return c
