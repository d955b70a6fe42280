"""What experiments find: the one schema that writers, pages, the terminal and tests share.

``summary.json`` of a run is one of these results as JSON (``summaries.to_json``, ``summaries.read_result``). A figure
has one name wherever it is measured:

    fd, kid, ...              to the reference (a run's training data)
    fd_held_out, ...          to held-out data
    check_fd, ...             in the features of the second extractor, which nothing was chosen with
    fd_target, ...            to the reference in a target's proportions

and its ``FigureFacts`` (title, which way is better) travel with the result, as do the ``Look`` of every method, so that
a page needs nothing but the result.
"""
