"""How Sphinx builds the site: ``sphinx-build -W --keep-going -n docs docs/_build/html``."""

import sys
from pathlib import Path

import wavevit

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "wavevit"
version = release = wavevit.__version__
html_title = "wavevit"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "built_pages",
    "command_help",
    "home_page",
    "outside_links",
    "recipe_files",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
language = "en"

# Pages are plain Markdown, which other viewers show as well: no syntax of MyST's own.
myst_heading_anchors = 3
myst_enable_extensions: list[str] = []

# Types stand in the annotations alone; the site shows them with the arguments.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = True
python_use_unqualified_type_names = True
python_display_short_literal_types = True
add_module_names = False

# `name` in a docstring is a link where the site has the name, and code where it does not. What an
# annotation or a role names has to be there, but for other libraries': nothing is downloaded
# to link to them.
default_role = "py:obj"
nitpick_ignore_regex = [
    ("py:obj", r".*"),
    ("py:.*", r"(torch|timm|numpy|np|nn|PIL|pathlib|collections|argparse|typing)\..*"),
    ("py:class", r"'.*'|Tensor|Details"),  # values of a Literal, and names in annotations as text
    # Of the inside: handed from one public function to another, or named by its last part alone.
    ("py:exc", r"UnreadableImageError|MaskError|UnclearLayoutError"),
    (
        "py:class",
        r"wavevit\.(data|detection|models|segmentation)\..*\.(\w+Split|\w+Network|\w+Rule|\w+Stage"
        r"|PyramidBackbone|Preprocess|DetectionAnnotations|MaskView|ObjectMask|PairPattern|FilePairs"
        r"|SegmentationClasses|PreparedImage|PreparedPicture|Card|Model)",
    ),
]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1b5e8c",
        "color-brand-content": "#1b5e8c",
        "color-brand-visited": "#1b5e8c",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cc4f0",
        "color-brand-content": "#7cc4f0",
        "color-brand-visited": "#7cc4f0",
    },
}
copybutton_exclude = ".linenos, .gp, .c1"

# Public names stand in modules of their own; links back from there would miss them.
viewcode_follow_imported_members = False
