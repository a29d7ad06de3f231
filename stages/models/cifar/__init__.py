"""The small networks that papers on distillation train on CIFAR, in timm's registry as `cifar_*`.

Read `staged` (the common interface), one architecture (`resnet`, `vgg`, ...), then `registry`.
"""
