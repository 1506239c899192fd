"""The story of an order on this host, in the order it happens:

intake     an order or a hand-off arrives and is recorded
place      it is queued here or handed to the host that holds its first dataset
execute    one task, whole:  fetch · run · publish · attest
deliver    what must reach others is told until they acknowledge
resume     what a crash or a lost bell left behind is taken up again
"""
