"""canal: an annotator of single-cell RNA-seq data that keeps learning."""

__version__ = "0.1.0"
