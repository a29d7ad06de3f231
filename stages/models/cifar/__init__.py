"""The small networks that papers on distillation train on CIFAR, in timm's registry as `cifar_*`."""
