"""Spelling of gene symbols."""

import pytest

from canal.quality.symbols import ENSEMBL, HUMAN, MOUSE, OTHER, kind_of


@pytest.mark.parametrize(
    ("kind", "symbols"),
    [
        (
            HUMAN,
            "CD3E HLA-DRB1 C1orf112 CXorf40A MT-CO1 RP11-34P13.7 AC012345.1 hsa-mir-21 7SK 1/2-SBSRNA4 T",
        ),
        (MOUSE, "Cd3e Ptprc H2-Aa mt-Co1 Gm1234 1700001C02Rik Hba-a1 Ly6c2 B2m Trp53 Rps27a Igkc"),
        (OTHER, "cd3e zgc:14052 si:ch211-1 mt-co1 sev hbaa1 YAL001C YBR020W-A CG10000 FBgn0000003 AT1G01010"),
        (ENSEMBL, "ENSG00000198851 ENSG00000198851.11 ENSMUSG00000032093 ENST00000361763 ENSDARG00000000001"),
    ],
)
def test_kind_of(kind, symbols):
    found = {symbol: kind_of(symbol) for symbol in symbols.split()}
    assert found == dict.fromkeys(symbols.split(), kind)
