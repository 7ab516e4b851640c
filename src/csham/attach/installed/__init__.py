"""Modules and hooks that attaching leaves in a network.

``attached`` is the module at a point and the hook that calls it, ``transfer`` carries lent weights from point to point,
``keeping`` sees that attention stays where modules are replaced, ``host_class`` that torch.fx sees it. Imports
``graph``. Start with ``attached``.
"""
