"""How others lay out weights and configs, one module a layout, all with the same anatomy:

recognises(folder) -> bool                      by what its files say, never by its name
read(folder, *, template) -> Composition        configs in our terms; no weight is read. template: None takes the
                                                folder's own chat template
to_ours(name, tensor) -> [(our name, tensor)]   one stored tensor; nothing for what we have no use for
refusal(model) -> str | None                    why this layout cannot hold this model

A layout that is written as well (all but `prismatic`) has also:

SPECIAL_TOKENS                                  what the layout needs in the vocabulary; export adds what is missing
PLACEHOLDERS                                    what stands for `image` and `video` in a chat template; may be left out
from_ours(name, tensor) -> [(name, tensor)]     one of our tensors, as the layout stores it; shapes alone decide, so
                                                tensors on meta tell the names
unheld(model) -> {our name: tensor}             what the layout needs and our model does not hold (layers above the
                                                chosen one); may be left out
write_configs(model, tokens, folder)            all files but weights and tokenizer, which lies in `folder` already

A layout whose weights are not a hub folder's has `tensors(folder) -> iterator of (stored name, tensor)`; one whose
folders do not hold all parts takes `tower` and `language`, where they lie, in `read` and `tensors`.

Modules that are no layout: `folder` (JSON files), `settings` (configs), `stored` (weight files), `tokenizer`,
`llava_family` (what two layouts share), `original_files` (LLaVA's files that are no whole folder), `timm_names`.
"""
