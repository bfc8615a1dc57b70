"""TensorRT plans: NVIDIA's parser and builder, the plan's record, and the GPU it is for."""
