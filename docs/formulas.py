"A formula as MathML, which browsers show without a script."
import re
import xml.etree.ElementTree as tree
from html import unescape

from docutils.utils.math.latex2mathml import tex2mathml

# What docutils' converter lacks, said in words it has
KNOWN = {r"\\dots\b": r"\\ldots", r"\\iff\b": r"\\Leftrightarrow", r"\\stackrel\b": r"\\overset",
         r"\\(?:big|Big)(?=[()\[\]|\\{}])": ""}
MATHML = "{http://www.w3.org/1998/Math/MathML}"
tree.register_namespace("", MATHML.strip("{}"))


def mathml(source: str, as_block: bool) -> str:
    """The formula as MathML; docutils' `MathError` for a command that is not known, or an argument without braces at
    the end."""
    for pattern, known in KNOWN.items(): source = re.sub(pattern, known, source)
    return with_indices(tex2mathml(source, as_block=as_block))


def with_indices(text: str) -> str:
    "The index of a letter with an accent to its lower right; docutils puts it below the letter, as if it were a sum."
    # XML knows few names
    formula = tree.fromstring(re.sub(r"&(?!lt;|gt;|amp;)\w+;", lambda name: unescape(name[0]), text))
    for element in formula.iter(f"{MATHML}munderover"):
        letter, index, accent = element
        if letter.tag == f"{MATHML}mo": continue # a sum, a maximum: what stands below it belongs there
        element.tag = f"{MATHML}msub"
        element[:] = [over := tree.Element(f"{MATHML}mover", accent="true"), index]
        over[:] = [letter, accent]
    return tree.tostring(formula, encoding="unicode")
