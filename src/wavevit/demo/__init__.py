"""The page of ``wavevit demo``: pictures in, what a network sees in them out.

`looks` asks one network, `service` shares networks among users, `uploads` reads what users send;
none of them knows of gradio. `page` lays out, `guard` stands before it, `server` runs both.
"""
