"""What others call the places of a model, in our words.

"resid.L" is what block L puts out, "resid_pre.L" what it takes in, "attn.L" and "mlp.L" what its attention
and its MLP add to the stream, "mlp_in.L" what its MLP reads (behind the norm). A name that is none of these,
such as the heads' outputs before they are mixed (`attn.hook_z`), stays as it is, and no model has a site of
that name: it can be encoded by hand, and is refused by whatever reads or steers a model.
"""

from __future__ import annotations

import re
from pathlib import Path

from fairlead.core.errors import LoadError

KINDS = ("resid", "resid_pre", "attn", "mlp", "mlp_in")
_LENS = {
    "hook_resid_post": "resid",
    "hook_resid_pre": "resid_pre",
    "hook_attn_out": "attn",
    "hook_mlp_out": "mlp",
    "ln2.hook_normalized": "mlp_in",
    "mlp.hook_in": "mlp_in",
}
_MODULE = {
    "": "resid",
    "mlp": "mlp",
    "self_attn": "attn",
    "attn": "attn",
    "attention": "attn",
    "post_feedforward_layernorm": "mlp",
    "pre_feedforward_layernorm": "mlp_in",
}
_BLOCK = r"(?:(?:model|language_model|transformer|gpt_neox)\.)*(?:layers|h)[._](\d+)(?:\.([a-z_.]+?))?(?:\.output)?"
_FOLDER = {"resid_post": "resid", "resid_pre": "resid_pre", "attention": "attn", "attn": "attn", "mlp": "mlp"}


def site_of(name: object) -> str:
    """The site that a hook name of TransformerLens, a module name of transformers or a folder name of
    dictionary_learning stands for; the name itself where it is none of ours."""
    text = str(name or "")
    if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", text):
        kind = _LENS.get(found[2])
        return f"{kind}.{int(found[1])}" if kind else text
    if found := re.fullmatch(_BLOCK, text):
        part = "" if found[2] in (None, "output") else found[2]
        kind = _MODULE.get(part)
        return f"{kind}.{int(found[1])}" if kind else text
    if found := re.fullmatch(r"(resid_post|resid_pre|attention|attn|mlp)(?:_layer)?_(\d+)", text):
        return f"{_FOLDER[found[1]]}.{int(found[2])}"
    return text


def known(site: str) -> bool:
    """Whether `site` is written in our words."""
    return re.fullmatch(rf"({'|'.join(KINDS)})\.\d+", site) is not None


def same(a: str, b: str) -> bool:
    """Whether two sites are one place: what block L puts out is what block L + 1 takes in."""

    def stream(site: str) -> str:
        kind, _, layer = site.rpartition(".")
        return f"resid.{int(layer) - 1}" if kind == "resid_pre" and layer.isdigit() and int(layer) > 0 else site

    return stream(a) == stream(b)


def chosen(path: Path, said: str, given: str) -> str:
    """The site to use: what the reference gives, which must be where the file says it was trained (`said`,
    "" when it does not say). LoadError when they differ, or when nobody says."""
    if given and said and not same(said, given):
        raise LoadError(
            f"{path} was not trained at {given}",
            expected=f"{said}, as its own files or names say",
            got=given,
            do=f"write @{said}, or choose the dictionary of {given}",
        )
    if not given and not said:
        raise LoadError(
            f"{path} does not say which activations it was trained on",
            expected="a site, such as resid.19",
            do=f"write it behind the path: {path}@resid.19",
        )
    return given or said
