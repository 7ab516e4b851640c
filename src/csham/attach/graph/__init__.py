"""The graph of a network: what it computes, and where attention can attend to it.

``trace`` runs the network once and writes its ``values`` down, a layer and its ``updates`` as one; ``positions`` reads
off them where branches, blocks and stages end, ``hosts`` which modules put those values out, ``kinds`` on what another
network works instead; ``points`` chooses among all that. Nothing here changes a network. Imports nothing else of
``attach``. Start with ``points``.
"""
