"""How others lay out weights and configs, one module a layout, all with the same six functions:

    recognises(folder) -> bool                      by what its files say, never by its name
    read(folder) -> Composition                     configs in our terms; no weight is read
    to_ours(name, tensor) -> [(our name, tensor)]   one stored tensor; nothing for what we have no use for
    from_ours(name, tensor) -> [(name, tensor)]     one of our tensors, as the layout stores it
    refusal(model) -> str | None                    why this layout cannot hold this model
    write_configs(model, tokens, folder)            all files but the weights and the tokenizer
"""
