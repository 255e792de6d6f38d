"""The architectures of the zoo that no library ships ready, and the list of all.

Each entry of `ENTRIES` is `(name, make, inputs)`: `make()` returns a module and
`inputs` maps an input's name to `(dtype, shape)`, with shapes as fed at test time.
"""

import torch
import torchvision
from torch import nn
from torch.nn import functional as F


class Outputs(nn.Module):
    """Turn dictionaries and nested lists of outputs into a flat tuple."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        def flat(value):
            if isinstance(value, torch.Tensor):
                return (value,)
            values = value.values() if isinstance(value, dict) else value
            return tuple(t for v in values if v is not None for t in flat(v))

        outputs = flat(self.inner(x))
        return outputs if len(outputs) > 1 else outputs[0]


def conv(inputs, outputs, kernel=3, stride=1, groups=1, act=nn.ReLU):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs), act())


class UNet(nn.Module):
    """Encoder and decoder with skips; upsampling by ConvTranspose or by Resize."""

    def __init__(self, transposed, width=24):
        super().__init__()
        w = [width, width * 2, width * 4]
        self.down = nn.ModuleList([conv(3, w[0]), conv(w[0], w[1]), conv(w[1], w[2])])
        self.raise_ = nn.ModuleList(
            [nn.ConvTranspose2d(w[2], w[1], 2, 2), nn.ConvTranspose2d(w[1], w[0], 2, 2)] if transposed else
            [nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(a, b, 1))
             for a, b, mode in ((w[2], w[1], "nearest"), (w[1], w[0], "bilinear"))])
        self.up = nn.ModuleList([conv(w[1] * 2, w[1]), conv(w[0] * 2, w[0])])
        self.head = nn.Conv2d(w[0], 5, 1)

    def forward(self, x):
        a = self.down[0](x)
        b = self.down[1](F.max_pool2d(a, 2))
        y = self.down[2](F.max_pool2d(b, 2))
        y = self.up[0](torch.cat((self.raise_[0](y), b), 1))
        return self.head(self.up[1](torch.cat((self.raise_[1](y), a), 1)))


class SuperResolution(nn.Module):
    """Residual body and PixelShuffle (SRResNet-like), or ESPCN without the body."""

    def __init__(self, blocks, width=32, scale=2):
        super().__init__()
        self.first = nn.Conv2d(3, width, 5, padding=2)
        self.body = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width),
                                                nn.Conv2d(width, width, 3, padding=1)) for _ in range(blocks))
        self.last = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x):
        y = torch.tanh(self.first(x)) if not self.body else F.leaky_relu(self.first(x), 0.2)
        for block in self.body:
            y = y + block(y)
        return self.last(y)


class Fsrcnn(nn.Sequential):
    """Super-resolution that ends in a transposed convolution."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 56, 5, padding=2), nn.PReLU(56), nn.Conv2d(56, 12, 1), nn.PReLU(12),
                         *(layer for _ in range(4) for layer in (nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12))),
                         nn.Conv2d(12, 56, 1), nn.PReLU(56),
                         nn.ConvTranspose2d(56, 1, 9, 2, 4, output_padding=1))


class Yolo(nn.Module):
    """A small one-stage detector: SiLU, split-and-concat blocks, path aggregation, decoded boxes."""

    class Csp(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first = conv(width, width, 1, act=nn.SiLU)
            self.second = nn.Sequential(conv(width // 2, width // 2, act=nn.SiLU), conv(width // 2, width // 2, act=nn.SiLU))
            self.last = conv(width // 2 * 3, width, 1, act=nn.SiLU)

        def forward(self, x):
            a, b = self.first(x).chunk(2, 1)
            return self.last(torch.cat((a, b, b + self.second(b)), 1))

    def __init__(self, w=16):
        super().__init__()
        self.stem = nn.Sequential(conv(3, w, stride=2, act=nn.SiLU), conv(w, w * 2, stride=2, act=nn.SiLU), self.Csp(w * 2))
        self.p3 = nn.Sequential(conv(w * 2, w * 4, stride=2, act=nn.SiLU), self.Csp(w * 4))
        self.p4 = nn.Sequential(conv(w * 4, w * 8, stride=2, act=nn.SiLU), self.Csp(w * 8))
        self.merge = nn.Sequential(conv(w * 12, w * 4, act=nn.SiLU), self.Csp(w * 4))
        self.heads = nn.ModuleList([nn.Conv2d(w * 4, 4 + 10, 1), nn.Conv2d(w * 8, 4 + 10, 1)])

    def forward(self, x):
        c3 = self.p3(self.stem(x))
        c4 = self.p4(c3)
        merged = self.merge(torch.cat((F.interpolate(c4, scale_factor=2.0), c3), 1))
        maps = [head(y).flatten(2) for head, y in zip(self.heads, (merged, c4))]
        boxes, scores = torch.cat(maps, 2).split((4, 10), 1)
        return torch.cat((boxes.exp(), scores.sigmoid()), 1)


class Recurrent(nn.Module):
    """Token classifier around an LSTM or a GRU."""

    def __init__(self, cell, bidirectional, vocabulary=500):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 64)
        self.cell = cell(64, 96, 2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(96 * (2 if bidirectional else 1), 12)

    def forward(self, tokens):
        return self.head(self.cell(self.embedding(tokens))[0])


class Tcn(nn.Module):
    """1-D convolutions with growing dilation over a signal."""

    def __init__(self, width=48):
        super().__init__()
        self.first = nn.Conv1d(8, width, 7, padding=3)
        self.body = nn.ModuleList(nn.Sequential(
            nn.Conv1d(width, width, 3, padding=2**i, dilation=2**i), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, 1)) for i in range(5))
        self.head = nn.Linear(width, 6)

    def forward(self, x):
        y = F.relu(self.first(x))
        for block in self.body:
            y = F.relu(y + block(y))
        return self.head(y.mean(2))


class Decoder(nn.Module):
    """A causal language model with tied input and output embeddings."""

    def __init__(self, width=128, heads=4, layers=3, vocabulary=800):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(256, width)
        self.heads = heads
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "norm1": nn.LayerNorm(width), "qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width),
            "norm2": nn.LayerNorm(width), "mlp": nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)),
        }) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens):
        batch, length = tokens.shape
        x = self.tokens(tokens) + self.places(torch.arange(length, device=tokens.device))
        for block in self.blocks:
            q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in block["qkv"](block["norm1"](x)).chunk(3, 2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](y.transpose(1, 2).reshape(batch, length, -1))
            x = x + block["mlp"](block["norm2"](x))
        return F.linear(self.norm(x), self.tokens.weight)


class Encoder(nn.Module):
    """A BERT-like encoder with an additive padding mask and two inputs."""

    def __init__(self, width=128, heads=4, layers=3, vocabulary=800):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(256, width)
        self.norm, self.heads = nn.LayerNorm(width), heads
        linear = lambda a, b: nn.Linear(a, b)
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "query": linear(width, width), "key": linear(width, width), "value": linear(width, width),
            "out": linear(width, width), "norm1": nn.LayerNorm(width), "norm2": nn.LayerNorm(width),
            "up": linear(width, 4 * width), "down": linear(4 * width, width)}) for _ in range(layers))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, input_ids, attention_mask):
        batch, length = input_ids.shape
        mask = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
        x = self.norm(self.tokens(input_ids) + self.places(torch.arange(length, device=input_ids.device)))
        split = lambda t: t.view(batch, length, self.heads, -1).transpose(1, 2)
        for block in self.blocks:
            q, k, v = split(block["query"](x)), split(block["key"](x)), split(block["value"](x))
            scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + mask
            y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)
            x = block["norm1"](x + block["out"](y))
            x = block["norm2"](x + block["down"](F.gelu(block["up"](x))))
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class Generator(nn.Sequential):
    """DCGAN's generator, with one grouped transposed convolution."""

    def __init__(self, width=32):
        layers = [nn.ConvTranspose2d(64, width * 8, 4), nn.BatchNorm2d(width * 8), nn.ReLU()]
        for scale, groups in ((8, 4), (4, 1), (2, 1)):
            layers += [nn.ConvTranspose2d(width * scale, width * scale // 2, 4, 2, 1, groups=groups, bias=False),
                       nn.BatchNorm2d(width * scale // 2), nn.ReLU()]
        super().__init__(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())


class Backboned(nn.Module):
    """Backbone with a feature pyramid and a detector's dense head, boxes not decoded."""

    def __init__(self, head):
        super().__init__()
        from torchvision.models.detection import backbone_utils, fcos, retinanet
        self.backbone = backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
        self.head = retinanet.RetinaNetHead(256, 9, 20) if head == "retinanet" else fcos.FCOSHead(256, 1, 20)

    def forward(self, x):
        return tuple(self.head(list(self.backbone(x).values())).values())


class SsdLite(nn.Module):
    """SSDLite's backbone and head, boxes not decoded."""

    def __init__(self):
        super().__init__()
        whole = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
        self.backbone, self.head = whole.backbone, whole.head

    def forward(self, x):
        return tuple(self.head(list(self.backbone(x).values())).values())


def image(size=224, channels=3, batch=1, width=None):
    return {"input": ("float32", [batch, channels, size, width or size])}


def tv(name, size=224, **options):
    return f"torchvision_{name}", lambda: Outputs(torchvision.models.get_model(name, weights=None, **options)), image(size)


def tm(name, size=224, **options):
    def make():
        import timm
        return timm.create_model(name, pretrained=False, **options)
    return f"timm_{name}", make, image(size)


def segmentation(name, size=192):
    return (f"torchvision_{name}", lambda: Outputs(torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=21, aux_loss=False)
        if "lraspp" not in name else torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=21)), image(size))


TOKENS = ("int64", [1, 24])
ENTRIES = [
    # convolutional classifiers
    tv("alexnet"), tv("resnet18"), tv("resnet50"), tv("resnext50_32x4d"), tv("squeezenet1_1"), tv("densenet121"),
    tv("inception_v3", 299, aux_logits=False, init_weights=False), tv("googlenet", aux_logits=False, init_weights=False),
    tv("mobilenet_v2"), tv("mobilenet_v3_large"), tv("mobilenet_v3_small"), tv("mnasnet0_5"), tv("shufflenet_v2_x1_0"),
    tv("efficientnet_b0"), tv("efficientnet_v2_s", 128), tv("regnet_x_400mf"), tv("regnet_y_400mf"), tv("convnext_tiny", 160),
    tm("tf_efficientnet_lite0"), tm("efficientnet_es"), tm("mixnet_s"), tm("ghostnet_100"), tm("lcnet_050"), tm("hardcorenas_a"),
    tm("fbnetc_100"), tm("repvgg_a0"), tm("mobileone_s0"), tm("hrnet_w18_small"), tm("dla34"), tm("darknet53", 128),
    tm("cspresnet50", 128), tm("ese_vovnet19b_dw"), tm("res2net50_14w_8s", 128), tm("resnest14d", 128), tm("seresnext26t_32x4d", 128),
    tm("ecaresnet26t", 128), tm("nf_regnet_b0"), tm("nfnet_l0", 128), tm("convnextv2_atto"), tm("mobilenetv4_conv_small"),
    tm("mobilenetv4_hybrid_medium"), tm("repvit_m0_9"), tm("starnet_s1"), tm("fastvit_t8"), tm("edgenext_xx_small"), tm("hgnetv2_b0"),
    tm("inception_next_atto"), tm("rexnet_100"), tm("skresnet18"), tm("selecsls42b"), tm("tresnet_m", 128),
    ("torchvision_vgg11_bn_features", lambda: torchvision.models.get_model("vgg11_bn", weights=None).features, image(64)),
    # transformers and MLPs on images
    tm("vit_tiny_patch16_224"), tm("deit_tiny_distilled_patch16_224"), tm("vit_small_patch32_224"), tm("eva02_tiny_patch14_224"),
    tm("swin_tiny_patch4_window7_224"), tm("swinv2_cr_tiny_ns_224"), tv("swin_t"), tm("maxvit_rmlp_pico_rw_256", 256),
    tm("coatnet_nano_rw_224"), tm("levit_128s"), tm("mobilevit_xxs", 256), tm("mobilevitv2_050", 256), tm("efficientformer_l1"),
    tm("efficientvit_b0"), tm("efficientvit_m0"), tm("pvt_v2_b0"), tm("twins_pcpvt_small"), tm("xcit_nano_12_p16_224"), tm("cait_xxs24_224"),
    tm("pit_ti_224"), tm("poolformer_s12"), tm("visformer_tiny"), tm("coat_lite_tiny"), tm("crossvit_tiny_240", 240), tm("tiny_vit_5m_224"),
    tm("focalnet_tiny_srf"), tm("mixer_s32_224"), tm("resmlp_12_224"), tm("gmlp_ti16_224"), tm("sequencer2d_s"), tm("hiera_tiny_224"),
    tm("davit_tiny", 128), tm("convit_tiny"), tm("mambaout_femto"),
    # segmentation
    segmentation("deeplabv3_mobilenet_v3_large"), segmentation("fcn_resnet50", 96), segmentation("lraspp_mobilenet_v3_large"),
    ("unet_transposed", lambda: UNet(True), image(96)), ("unet_resize", lambda: UNet(False), image(96, width=128)),
    # detection
    ("yolo_tiny", Yolo, image(160)), ("ssdlite_head", SsdLite, image(320)),
    ("retinanet_resnet18_head", lambda: Backboned("retinanet"), image(128)), ("fcos_resnet18_head", lambda: Backboned("fcos"), image(128)),
    # super-resolution and generation
    ("espcn", lambda: SuperResolution(0), image(48, width=64)), ("srresnet", lambda: SuperResolution(6), image(48, width=64)),
    ("fsrcnn", Fsrcnn, image(40, 1, width=56)), ("dcgan", Generator, {"input": ("float32", [1, 64, 1, 1])}),
    # sequences
    ("lstm_tagger", lambda: Recurrent(nn.LSTM, False), {"tokens": TOKENS}), ("bilstm_tagger", lambda: Recurrent(nn.LSTM, True), {"tokens": TOKENS}),
    ("gru_tagger", lambda: Recurrent(nn.GRU, False), {"tokens": TOKENS}), ("tcn", Tcn, {"input": ("float32", [1, 8, 200])}),
    ("decoder_tied", Decoder, {"tokens": TOKENS}), ("encoder_masked", Encoder, {"input_ids": TOKENS, "attention_mask": TOKENS}),
    # volumes
    ("torchvision_r3d_18", lambda: torchvision.models.get_model("r3d_18", weights=None, num_classes=10), {"input": ("float32", [1, 3, 8, 64, 64])}),
]

# name -> axes that stay symbolic, where the batch is not the only one
DYNAMIC = {
    **{name: {2: "height", 3: "width"} for name in ("espcn", "srresnet", "fsrcnn", "unet_resize", "torchvision_fcn_resnet50", "torchvision_lraspp_mobilenet_v3_large")},
    **{name: {1: "length"} for name in ("lstm_tagger", "bilstm_tagger", "gru_tagger", "decoder_tied", "encoder_masked")},
    "tcn": {2: "length"},
}
