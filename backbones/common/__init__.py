"""What both packages and the tools stand on; knows nothing of networks.

- `errors`: `UserError` and its kinds, what a user can mend; `cli` makes one line and an exit code
  of them, `config` reads dataclasses from YAML and the command line, whose words `arguments`
  prepares.
- `files` writes files whole or not at all; `images` is where images are decoded and written.
- `device`, `cores`, `memory`, `distributed`, `launch`, `signals`: the machine and its processes.
- `progress`, `plots`: what is shown meanwhile and drawn at the end.
- `packages`: optional dependencies.
"""
