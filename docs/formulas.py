"A formula as MathML, which browsers show without a script."
import re

from docutils.utils.math.latex2mathml import tex2mathml

# What docutils' converter lacks, said in words it has
KNOWN = {r"\\dots\b": r"\\ldots", r"\\iff\b": r"\\Leftrightarrow", r"\\stackrel\b": r"\\overset", r"\\(?:big|Big)(?=[()\[\]|\\{}])": ""}


def mathml(source: str, as_block: bool) -> str:
    "The formula as MathML; docutils' `MathError` for a command that is not known, or an argument without braces at the end."
    for pattern, known in KNOWN.items(): source = re.sub(pattern, known, source)
    return tex2mathml(source, as_block=as_block)
