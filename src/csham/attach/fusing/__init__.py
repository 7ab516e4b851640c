"""The fusing of endings: blocks whose ``relu(attention(x) + shortcut)`` is one call.

``forward_graph`` reads what a block's forward does, ``outside`` what it names outside of its module, ``endings`` finds
those of which the attention can compute the end too and rewrites them, ``epilogue`` puts the result in the block's
place while it is right, and takes it out again.
Imports ``graph`` and ``installed``. Start with ``endings``.
"""
