"""The report of a study: one HTML file that needs no server, and says first what won.

`markup`: escaping. `axes`: frames and marks. `scene`: the trials, sorted out once. `verdict`,
`charts`, `traces`, `timeline`, `tables`, `pictures`: what stands on the page. `sections`: their
order. `write`: the files. `page.css` and `page.js` are put into the page as they stand.
"""
