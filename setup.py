"""Everything the package says about itself comes from settings.ini, the README and the version in
pseudolabel_nb/__init__.py."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
about, extras = config["DEFAULT"], config["extras"]
name, readme = about["lib_name"], here / "README.md"


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


setup(
    name=name,
    version=re.search(r'^__version__ = "(.+)"$', (here / name / "__init__.py").read_text(encoding="utf-8"), re.M)[1],
    description=about["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=about["author"],
    license_expression=about["license"],
    keywords=[word.strip() for word in about["keywords"].split(",")],
    classifiers=lines(about["classifiers"]),
    python_requires=f">={about['min_python']}",
    packages=find_packages(include=[name, f"{name}.*"]),
    package_data={name: ["py.typed", "experiments/report_template.ipynb", "diagnostics/trials.csv"]},
    install_requires=lines(about["requirements"]),
    extras_require={extra: lines(extras[extra]) for extra in extras if extra not in config.defaults()},
    entry_points={"console_scripts": lines(about["console_scripts"]), "nbdev": [f"{name} = {name}._modidx:d"]},
    zip_safe=False,
)
