"""The story of an order on this host, in the order it happens:

intake     an order or a hand-off arrives and is recorded
place      it is queued here or handed to the host that holds its first dataset
execute    one task, whole:  fetch · run · publish · attest
deliver    what must reach others is told until they acknowledge
gate       no task before hostile code failed in the cage; trials: the folders of those that try it
resume     what a crash or a lost bell left behind is taken up again
"""
