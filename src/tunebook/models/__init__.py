"""Models in and out: loading through Unsloth, adapters, chat templates, images, the embedded model."""
