"""Triton kernels of what is element-wise in a pass: on a GPU a chain of PyTorch's kernels reads and writes the same memory many times.

Each computes in float32 and rounds once, unless a model rounds in between. Only tensors on a CUDA device get here, and only then are
these modules imported: they import Triton, which exists on Linux only. Triton's interpreter (TRITON_INTERPRET=1) runs them on a CPU.

No kernel synchronises, and what is compiled depends on the dimensions of a model and the strides of its tensors, never on the number of
tokens: an eager pass compiles everything that the capture of a CUDA graph needs. Block sizes follow from the shapes; tuning them by
trial would cost a short study seconds. Offsets of rows are computed in 64 bits.
Source: Tillet, Kung & Cox 2019, Triton (MAPL 2019).
"""
