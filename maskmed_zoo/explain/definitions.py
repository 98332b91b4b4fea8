"""What the numbers in `explain.json` are, in words that are written into it."""

from __future__ import annotations

DEFINITIONS = {
    "windows": (
        "Everything is of one window of the run's patch size per case, at the network's spacing: embeddings, binding "
        "and matching of the one centred on all predicted foreground ('foreground_window'), attention and sampling of "
        "the one centred as asked for ('window'). What lies outside is not seen. 'start' is the window's first voxel "
        "(z, y, x) in the resampled image, negative where that was padded. Stages and blocks are in the order in which "
        "they are computed, the final one last."
    ),
    "class_embeddings": (
        "Query heads: softmax of the class logits, one row per query, the last column being 'no object'. Dense heads: "
        "the class embeddings, one row per query and one column per label, no probabilities; those of learned_class "
        "do not depend on the image."
    ),
    "mask_embeddings": (
        "What is multiplied with a stage's features to give a mask: made from the queries, or the weights of the "
        "1x1x1 convolution where the head has one (these do not depend on the image)."
    ),
    "binding": (
        "A query is bound to the class with its largest class embedding at the final stage, if its mask holds a voxel "
        "with a logit of at least 0 and the class is not 'no object'; background is a class. Dense heads have no "
        "'no object' and their queries act together, so that a binding says less there."
    ),
    "matching": (
        "Against the reference, whatever the query says of itself: a label is served by the query whose final mask "
        "(logit of at least 0) has the highest Dice with the label's reference in the window, if that is above 0. "
        "Labels that are not annotated, and background where some are not, are left out."
    ),
    "purity": (
        "Of a query: the share of its most frequent class among its bindings over cases; of a label: the share of its "
        "most frequent query among the cases in which it is served. Means are weighted by the number of bindings. "
        "Purity is 1 too where all queries answer for one class: 'classes' names those that have a query at all."
    ),
    "attention": (
        "Cross-attention averaged over heads, over the tokens of the stage a block reads. peak: largest weight over "
        "the uniform one; inside: share of attention within the label as predicted; inside_if_uniform: the label's "
        "share of the window; prior: share of the window that the mask prior left open, null where there is none."
    ),
    "sampling": (
        "Of the query voxel of the finest query level that holds the middle of a predicted label, over all heads and "
        "points: distance_mm from the query's centre; its mean weighted by attention; weight, the level's share; "
        "outside, the share of that which lies outside of the window, where zeros are read. Level 0 is the finest. "
        "all_queries: the same over all query voxels of the window."
    ),
}
