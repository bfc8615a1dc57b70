"""Networks of published detectors that neither timm nor torchvision has, and the specs of all that are known.

Written anew from the papers and from the names and shapes of the authors' files; each module names its source.
"""
