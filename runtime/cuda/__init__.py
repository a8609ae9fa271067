"""The CUDA driver: binaries loaded and launched without Triton."""
